"""Many models through one backbone, and versions that change under load."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import load
import serving_setup as setup
from load import Load, post
from serving_setup import CONNECTIONS, MODEL, Bench, Clones, Running, growth_mib, register

_THOUSAND = 1000
_TEN_THOUSAND = 10_000
_IMPORTED = 100  # of the ten thousand; the others by the code that imports use
_SWITCHES = 1000

Json = dict[str, Any]


def thousand(bench: Bench) -> Json:
    """1,000 head-only models under uniform traffic against one model, by turns."""
    names = [f"thousand-{number}" for number in range(_THOUSAND)]
    register(bench, names)
    with bench.running() as service:
        bench.closed(service, MODEL)  # until memory for the largest batch has been taken
        alone = [bench.closed(service, MODEL)]
        before = service.memory_bytes()
        loading = time.monotonic()
        answers = {n: service.graft.predict(n, bench.images[0]) for n in names}
        loading_seconds = time.monotonic() - loading
        distinct = {a["predictions"][0]["score"] for a in answers.values()}
        loaded = service.memory_bytes()
        uniform = []
        for _ in range(bench.options.rounds):
            uniform.append(bench.closed(service, *names))
            alone.append(bench.closed(service, MODEL))
        after = service.memory_bytes()
    return {
        "one": [each.as_json() for each in alone],
        "thousand": [each.as_json() for each in uniform],
        "first_predictions_per_second": round(_THOUSAND / loading_seconds, 1),
        "distinct_scores": len(distinct),
        "memory_mib": {
            "heads_loaded": growth_mib(before, loaded),
            "after_traffic": growth_mib(before, after),
        },
        "ratio": {
            "throughput": round(_mean_per_second(uniform) / _mean_per_second(alone), 3),
            "p99": round(_mean_p99(uniform) / _mean_p99(alone), 3),
            "p99_by_round": [
                round(each.quantile_ms(0.99) / _mean_p99(alone), 3) for each in uniform
            ],
            "processor_time": round(_mean_ms(uniform) / _mean_ms(alone), 3),
        },
    }


def many(bench: Bench) -> Json:
    """10,000 registered models: start to ready, listing, prediction."""
    report: Json = {}
    with bench.running() as service:
        few = bench.closed(service, MODEL)
        clones = Clones(service.data_folder, service.graft.model(MODEL)["default"]["digest"])
        with tempfile.TemporaryDirectory() as folder:
            archives = [clones.archive(Path(folder), _TEN_THOUSAND + n) for n in range(_IMPORTED)]
            started = time.monotonic()
            for number, archive in enumerate(archives):
                service.graft.import_archive(f"imported-{number}", archive)
            seconds = (time.monotonic() - started) / _IMPORTED
    report["import_ms"] = round(seconds * 1e3, 1)
    register(bench, [f"many-{number}" for number in range(_TEN_THOUSAND - _IMPORTED)])
    started = time.monotonic()
    with bench.running() as service:
        report["start_to_ready_seconds"] = round(time.monotonic() - started, 2)
        pages = _page_seconds(service)
        loaded = bench.closed(service, MODEL)
    report["listing"] = {
        "pages_of_200": len(pages),
        "median_ms": round(statistics.median(pages) * 1e3, 1),
        "max_ms": round(max(pages) * 1e3, 1),
        "all_seconds": round(sum(pages), 2),
    }
    ratio = round(loaded.per_second / few.per_second, 3)
    return {**report, "few": few.as_json(), "many": loaded.as_json(), "throughput_ratio": ratio}


def aliases(bench: Bench) -> Json:
    """An alias switched 1,000 times under 16 clients: errors, and answers mixing versions."""
    with bench.running() as service, tempfile.TemporaryDirectory() as folder:
        clones = Clones(service.data_folder, service.graft.model(MODEL)["default"]["digest"])
        labels = {1: ("a-1", "b-1"), 2: ("a-2", "b-2")}
        name = f"switched-{time.time_ns()}"
        digests = {}
        for version, classes in labels.items():
            archive = clones.archive(Path(folder), version, classes)
            digests[version] = service.graft.import_archive(name, archive)["digest"]
        service.graft.set_alias(name, "default", 2)
        seen = dict.fromkeys(labels, 0)

        def check(_: int, body: bytes) -> str | None:
            answer = json.loads(body)
            version, digest = answer["model"]["version"], answer["model"]["digest"]
            found = {score["label"] for score in answer["predictions"][0]["scores"]}
            seen[version] += 1
            whole = digest == digests[version] and found == set(labels[version])
            return None if whole else f"mixed: {answer}"

        switches = threading.Thread(target=_switch, args=(service, name))
        switches.start()
        started = time.monotonic()
        asking = lambda n: post(  # noqa: E731
            f"/v1/models/{name}/predict", bench.images[n % len(bench.images)]
        )
        found = load.closed(
            service.port,
            asking,
            connections=CONNECTIONS,
            seconds=300,
            check=check,
            until=lambda: not switches.is_alive(),
        )
        switches.join()
    seconds = round(time.monotonic() - started, 1)
    return {"switches": _SWITCHES, "seconds": seconds, "by_version": seen, **found.as_json()}


def _switch(service: Running, name: str) -> None:
    with setup.Graft(f"http://127.0.0.1:{service.port}") as graft:
        for number in range(_SWITCHES):
            graft.set_alias(name, "default", 1 + number % 2)


def _mean_per_second(loads: list[Load]) -> float:
    return statistics.mean(each.per_second for each in loads)


def _mean_ms(loads: list[Load]) -> float:
    return statistics.mean(each.processor_ms for each in loads)


def _mean_p99(loads: list[Load]) -> float:
    return statistics.mean(each.quantile_ms(0.99) for each in loads)


def _page_seconds(service: Running) -> list[float]:
    """List every model in pages of 200; return the seconds of each page."""
    seconds, after = [], {}
    with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as http:
        while True:
            started = time.monotonic()
            page = http.get("/v1/models", params={"limit": 200, **after}).json()
            seconds.append(time.monotonic() - started)
            if page["next"] is None:
                return seconds
            after = {"after": page["next"]}
