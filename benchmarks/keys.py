"""What API keys cost a prediction: the same inference process behind two apis, one asks for keys.

    python benchmarks/keys.py --shared ../shared

Both apis are asked by turns, over kept connections. `/v2` does nothing but answer: what it takes
longer is the price of finding out who calls. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx2
import psutil

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY))

from jobs.issuing import Wish, issue  # noqa: E402
from jobs.keys import Limits, Scope  # noqa: E402
from jobs.store.database import Database  # noqa: E402
from jobs.store.tables import DEFAULT_PROJECT  # noqa: E402
from service.client import Graft  # noqa: E402
from service.embedded import embedded  # noqa: E402
from service.free_port import free_port  # noqa: E402
from tests.images import class_folders, shape_bytes, write_zip  # noqa: E402


class Asked:
    """One api process with the connection that it is asked over."""

    def __init__(self, url: str, key: str | None, process: psutil.Process) -> None:
        self._process = process
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def processor_seconds(self) -> float:
        """Return the processor time of the api so far: other work on the machine is not in it."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def look(self, times: int) -> float:
        """Return the processor seconds of a request that does nothing."""
        before = self.processor_seconds()
        for _ in range(times):
            self._http.get("/v2").raise_for_status()
        return (self.processor_seconds() - before) / times

    def predict(self, image: bytes, seconds: float, at_once: int) -> tuple[float, float]:
        """Return predictions a second, and the api's processor seconds of each, several at once."""
        done = [0] * at_once
        until = time.perf_counter() + seconds

        def ask(which: int) -> None:
            while time.perf_counter() < until:
                self._http.post("/v1/models/shapes/predict", content=image).raise_for_status()
                done[which] += 1

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(at_once)]
        started, before = time.perf_counter(), self.processor_seconds()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        used = (self.processor_seconds() - before) / sum(done)
        return sum(done) / (time.perf_counter() - started), used


def main() -> None:
    """Train a small head, start the second api, ask by turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=_REPOSITORY.parent / "shared")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue = str(options.shared / "weights" / "catalog.json")
        with embedded(folder / "data", [catalogue]) as url, Graft(url) as graft:
            _train(graft, folder)
            key, keyed = _with_keys(folder)
            try:
                plain = Asked(url, None, _api_process())
                with_keys = Asked(keyed[0], key, psutil.Process(keyed[1].pid))
                print(json.dumps(_measure(plain, with_keys, options), indent=1))
            finally:
                keyed[1].terminate()
                keyed[1].wait()


def _api_process() -> psutil.Process:
    """Return the api of the embedded service."""
    below = psutil.Process().children(recursive=True)
    return next(
        p
        for p in below
        if p.cmdline()[-2:] == ["service.cli.main", "api"] and p.ppid() != os.getpid()
    )


def _train(graft: Graft, folder: Path) -> None:
    while not graft.is_ready():
        time.sleep(0.2)
    archive = write_zip(folder / "shapes.zip", class_folders())
    dataset = graft.wait_for_dataset(graft.upload(archive)["id"])
    spec = {"backbone": "mobilenet_v2", "recipe": "head", "model": "shapes"}
    graft.wait_for_job(graft.submit(dataset["id"], **spec)["id"])


def _with_keys(folder: Path) -> tuple[str, tuple[str, subprocess.Popen[bytes]]]:
    """Start an api with a copy of the rows, one key, and the same inference process."""
    (folder / "keyed").mkdir()
    with closing(sqlite3.connect(folder / "data" / "graft.db")) as source:
        source.execute("VACUUM INTO ?", (str(folder / "keyed" / "graft.db"),))
    database = Database(f"sqlite:///{folder / 'keyed' / 'graft.db'}")
    wish = Wish(DEFAULT_PROJECT, "benchmark", Scope.READ, Limits(requests_per_minute=10**9), None)
    with database.write() as connection:
        secret = issue(connection, wish).secret
    database.close()
    port = free_port("127.0.0.1")
    settings = {
        "GRAFT_DATA_DIR": str(folder / "keyed"),
        "GRAFT_INFERENCE_URL": f"unix://{folder / 'data' / 'run' / 'inference.sock'}",
        "GRAFT_PORT": str(port),
    }
    command = [sys.executable, "-P", "-m", "service.cli.main", "api"]
    process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, trust_env=False) as client:
        for _ in range(600):
            try:
                client.get("/healthz")
                break
            except httpx2.TransportError:
                time.sleep(0.1)
    return secret, (url, process)


def _measure(plain: Asked, keyed: Asked, options: argparse.Namespace) -> dict[str, object]:
    """Ask both by turns; the first round of each is not counted."""
    image = shape_bytes("disc")
    looks: dict[str, list[float]] = {"without": [], "with": []}
    rates: dict[str, list[float]] = {"without": [], "with": []}
    costs: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(options.rounds + 1):
        for name, asked in (("without", plain), ("with", keyed)):
            looks[name].append(asked.look(1500) * 1e6)
            rate, used = asked.predict(image, options.seconds, 4)
            rates[name].append(rate)
            costs[name].append(used * 1e6)
    ratios = [b / a for a, b in zip(rates["without"][1:], rates["with"][1:], strict=True)]
    return {
        "api_processor_us_of_a_request": _rounds(looks),
        "api_processor_us_of_a_prediction": _rounds(costs),
        "predictions_per_second": _rounds(rates),
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "throughput_ratio_median": round(statistics.median(ratios), 3),
    }


def _rounds(found: dict[str, list[float]]) -> dict[str, object]:
    """Return median and all rounds but the first, which warms up."""
    return {
        name: {"median": round(statistics.median(v[1:]), 1), "rounds": [round(x, 1) for x in v[1:]]}
        for name, v in found.items()
    }


if __name__ == "__main__":
    main()
