"""Serving over time: from the start on, for long, and beside a training."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import load
import serving_setup as setup
from load import Load
from serving_setup import MODEL, Bench, Running, growth_mib, register

_MOST_AT_ONCE = 64  # connections of an open load

Json = dict[str, Any]


def cold(bench: Bench) -> Json:
    """Start to ready against importing torch; first predictions of heads against warm ones."""
    imports, starts = [], []
    for _ in range(bench.options.rounds + 1):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
        imports.append(time.monotonic() - started)
        started = time.monotonic()
        with bench.running():
            starts.append(time.monotonic() - started)
    names = [f"cold-{number}" for number in range(30)]
    register(bench, names)
    first, warm = [], []
    with bench.running() as service:
        for _ in range(30):
            _timed(service, MODEL, bench.images[0])
        for name in names:
            first.append(_timed(service, name, bench.images[0]))
            warm.append(_timed(service, name, bench.images[0]))
    return {
        "import_seconds": _rounded(imports),
        "ready_seconds": _rounded(starts),
        "ready_per_import": round(statistics.median(starts) / statistics.median(imports), 2),
        "first_ms": round(statistics.median(first) * 1e3, 1),
        "warm_ms": round(statistics.median(warm) * 1e3, 1),
        "first_per_warm": round(statistics.median(first) / statistics.median(warm), 2),
    }


def _timed(service: Running, name: str, image: bytes) -> float:
    started = time.monotonic()
    service.graft.predict(name, image)
    return time.monotonic() - started


def soak(bench: Bench) -> Json:
    """70 % of the capacity for a long time: errors, memory, file descriptors.

    Both are looked at after a tenth of the same load first: until then threads come and memory is
    taken for the largest batch. Before it as many clients at once as the load can have fill the
    pools of connections, which are bounded: 32 kept ones to inference, one to the database for each
    thread that asks it at once.
    """
    seconds = bench.options.soak_seconds
    with bench.running() as service:
        capacity = bench.closed(service, *setup.ARCHITECTURES, seconds=10.0).per_second

        def loaded(seconds: float) -> Load:
            asking = bench.asking(*setup.ARCHITECTURES)
            rate = 0.7 * capacity
            return load.opened(
                service.port, asking, rate=rate, connections=_MOST_AT_ONCE, seconds=seconds
            )

        load.closed(
            service.port, bench.asking(*setup.ARCHITECTURES), connections=_MOST_AT_ONCE, seconds=5.0
        )
        loaded(seconds / 10)
        time.sleep(1)  # its connections are closed
        memory, descriptors = service.memory_bytes(), service.descriptors()
        found = loaded(seconds)
        time.sleep(1)
        growth = growth_mib(memory, service.memory_bytes())
        after = service.descriptors()
    return {
        "seconds": seconds,
        "capacity_per_second": round(capacity, 1),
        **found.as_json(),
        "memory_growth_mib": growth,
        "descriptors": {"before": descriptors, "after": after},
    }


def training(bench: Bench) -> Json:
    """Latency at a third of the capacity while a fine-tune runs, against none."""
    dataset = (bench.options.folder / "prepared").read_text()
    seconds = max(20.0, bench.options.seconds)
    with bench.running() as service:
        rate = bench.closed(service, MODEL).per_second / 3

        def latency() -> Load:
            asking = bench.asking(MODEL)
            return load.opened(service.port, asking, rate=rate, connections=64, seconds=seconds)

        idle = latency()
        job = service.graft.submit(
            dataset, backbone=MODEL, recipe="finetune", model="trained-beside", promote=False
        )
        deadline = time.monotonic() + 120
        while service.graft.job(job["id"])["phase"] != "train":
            if time.monotonic() > deadline:
                raise RuntimeError(f"it does not train: {service.graft.job(job['id'])}")
            time.sleep(0.2)
        busy = latency()
        capacity = bench.closed(service, MODEL)
        trained = service.graft.job(job["id"])
        service.graft.act(job["id"], "cancel")
    return {
        "idle": idle.as_json(),
        "training": busy.as_json(),
        "throughput_while_training": capacity.as_json(),
        "job_afterwards": {"status": trained["status"], "phase": trained["phase"]},
        "ratio": {
            "p50": round(busy.quantile_ms(0.5) / idle.quantile_ms(0.5), 2),
            "p99": round(busy.quantile_ms(0.99) / idle.quantile_ms(0.99), 2),
        },
    }


def _rounded(seconds: list[float]) -> list[float]:
    return [round(each, 2) for each in seconds]
