"""Throughput of one model against a bare loop without HTTP, and against LitServe."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import load
import psutil
import serving_setup as setup
from load import Load, Requests, post
from serving_setup import CONNECTIONS, MODEL, Bench

from service.free_port import free_port

Json = dict[str, Any]


def bare(bench: Bench) -> Json:
    """Throughput of one model against the bare loop, by turns."""
    report = {}
    for name in setup.ARCHITECTURES:
        with bench.running() as service:
            digest = service.graft.model(name)["default"]["digest"]
            with _bare_loop(bench, digest) as (found, measure):
                rounds = []
                for _ in range(bench.options.rounds):
                    loop = measure(bench.options.seconds)
                    rounds.append((loop, bench.closed(service, name)))
        loops, loads = [r[0] for r in rounds], [r[1] for r in rounds]
        served_ms = statistics.mean(each.processor_ms for each in loads)
        loop_ms = statistics.mean(loop["processor_ms_per_image"] for loop in loops)
        report[name] = {
            "bare": {**found, "rounds": loops},
            "graft": [each.as_json() for each in loads],
            "throughput_ratio": round(
                sum(each.per_second for each in loads)
                / sum(loop["images_per_second"] for loop in loops),
                3,
            ),
            "processor_time_ratio": round(loop_ms / served_ms, 3),
        }
    return report


@contextmanager
def _bare_loop(bench: Bench, digest: str) -> Iterator[tuple[Json, Callable[[float], Json]]]:
    """Run `serving_bare.py`; yield what it chose, and what measures it for some seconds."""
    script = str(Path(__file__).with_name("serving_bare.py"))
    data = str(bench.options.folder / "data")
    arguments = [data, digest, str(bench.options.archive), str(bench.options.threads)]
    with subprocess.Popen(
        [sys.executable, script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        found = json.loads(child.stdout.readline())

        def measure(seconds: float) -> Json:
            print(seconds, file=child.stdin, flush=True)
            found: Json = json.loads(child.stdout.readline())
            return found

        yield found, measure
        child.stdin.close()


def litserve(bench: Bench) -> Json:
    """The same network behind LitServe, at 16 connections; one service at a time runs."""
    with bench.running() as service:
        ours = [bench.closed(service, MODEL)]
        digest = service.graft.model(MODEL)["default"]["digest"]
    report = {
        engine: _measured_litserve(bench, digest, engine == "onnx").as_json()
        for engine in ("torch", "onnx")
    }
    with bench.running() as service:
        ours.append(bench.closed(service, MODEL))
    per_second = statistics.mean(each.per_second for each in ours)
    p99_ms = max(each.quantile_ms(0.99) for each in ours)
    ratios = {
        engine: {
            "throughput": round(per_second / theirs["per_second"], 2),
            "p99": round(p99_ms / theirs["p99_ms"], 2),
        }
        for engine, theirs in report.items()
    }
    return {"graft": [each.as_json() for each in ours], "litserve": report, "ratio": ratios}


def _measured_litserve(bench: Bench, digest: str, with_onnx: bool) -> Load:
    with _litserve(bench, digest, with_onnx) as (port, process):
        asking, seconds = _multipart(bench), bench.options.seconds
        load.closed(port, asking, connections=CONNECTIONS, seconds=2.0)
        before = setup.tree_seconds(process)
        found = load.closed(port, asking, connections=CONNECTIONS, seconds=seconds)
        return replace(found, service_seconds={"all": setup.tree_seconds(process) - before})


def _multipart(bench: Bench) -> Requests:
    edge = "photograph"
    begin = f'--{edge}\r\nContent-Disposition: form-data; name="content"; filename="a.jpg"\r\n\r\n'

    def request(number: int) -> tuple[bytes, bytes]:
        image = bench.images[number % len(bench.images)]
        body = begin.encode() + image + f"\r\n--{edge}--\r\n".encode()
        return post("/predict", body, f"multipart/form-data; boundary={edge}")

    return request


@contextmanager
def _litserve(bench: Bench, digest: str, with_onnx: bool) -> Iterator[tuple[int, psutil.Process]]:
    """Run LitServe with the published model's weights; yield its port and first process."""
    port = free_port("127.0.0.1")
    script = str(Path(__file__).with_name("litserve_app.py"))
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pth"
        _write_state(bench, digest, state)
        command = [
            bench.options.litserve_python, script, f"--port={port}", f"--state={state}",
            f"--threads={bench.options.threads}", f"--batch={CONNECTIONS}",
        ]  # fmt: skip
        if with_onnx:
            engines = bench.options.folder / "data" / "cache" / "engines"
            command.append(f"--onnx={next(engines.glob('*.onnx'))}")
        child = subprocess.Popen(command, start_new_session=True)
        try:
            _wait_for_litserve(bench, port)
            yield port, psutil.Process(child.pid)
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(30)


def _wait_for_litserve(bench: Bench, port: int) -> None:
    for _ in range(120):
        try:
            load.closed(port, _multipart(bench), connections=1, seconds=0.1)
        except (OSError, RuntimeError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("LitServe did not start")


def _write_state(bench: Bench, digest: str, path: Path) -> None:
    """Write torchvision's state of the published model."""
    import torch  # noqa: PLC0415 - the load generator needs none

    from models_cache.artifacts import read_artifact, read_model  # noqa: PLC0415
    from models_cache.blobs import BlobStore  # noqa: PLC0415

    data = bench.options.folder / "data"
    blobs = BlobStore(data / "blobs")
    artifact = read_artifact(blobs, digest)
    weights = artifact.facts.weights or {}
    files = [*(data / "weights").glob("*"), *bench.options.weights.glob("*")]
    file = next(each for each in files if each.name == weights["file"])
    state = torch.load(file, weights_only=True)
    own = {k: v for k, v in state.items() if not k.startswith("classifier")}
    head = {
        name.replace("head", "classifier.1"): torch.from_numpy(value)
        for name, value in read_model(blobs, artifact).items()
    }
    torch.save({**own, **head}, path)
