"""Upload to served model over HTTP, against one epoch of PyTorch's tutorial loop; and job starts.

    python benchmarks/main_job_over_http.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER

In one run on one machine: one epoch of the tutorial's loop (see `head_vs_tutorial`), then a real
`graft serve`: upload, recipe `head`, first prediction; a second job whose features are cached; and
the time from a job's acceptance to the first line of its child, for several jobs.

Prints the ratios and writes them as JSON. Needs the whole project, unlike the other benchmarks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import head_vs_tutorial as tutorial  # noqa: E402 - after the path
import httpx2  # noqa: E402

from service.client import Graft, Json, wait_until_ready  # noqa: E402
from service.embedded import embedded  # noqa: E402

_JOBS = 8


def main() -> None:
    """Run both, print the ratios, write the JSON."""
    options = tutorial.parse_options()
    if options.tutorial_epoch is not None:  # we are the tutorial's own process
        tutorial.tutorial_epoch(options.tutorial_epoch, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        report: dict[str, Any] = {"tutorial_epoch": tutorial.timed_tutorial(Path(folder), options)}
        catalogue = str((options.weights / "catalog.json").absolute())
        os.environ["GRAFT_OFFLINE"] = "1"
        os.environ["GRAFT_DEVICE"] = "cpu"
        os.environ["GRAFT_TRAIN_THREADS"] = str(options.threads)
        os.environ["GRAFT_SERVE_THREADS"] = str(options.threads)
        with embedded(Path(folder) / "data", [catalogue]) as url, Graft(url) as graft:
            wait_until_ready(graft)
            report |= _main_job(graft, options)
            report["start"] = _starts(graft, url, report.pop("dataset"))
    epoch = report["tutorial_epoch"]["seconds"]
    report["ratios"] = {
        "upload_to_served_per_epoch": round(report["upload_to_served_seconds"] / epoch, 4),
        "head_cold_per_epoch": round(report["head_cold_seconds"] / epoch, 4),
        "head_features_cached_per_epoch": round(report["head_cached_seconds"] / epoch, 4),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _main_job(graft: Graft, options: Any) -> Json:  # noqa: ANN401 - an argparse namespace
    started = time.monotonic()
    uploaded = graft.upload(options.archive, name="benchmark")
    dataset = graft.wait_for_dataset(uploaded["id"], poll_seconds=0.02)
    ready = time.monotonic()
    job = _head(graft, dataset["id"], options.architecture)
    with zipfile.ZipFile(options.archive) as archive:
        name = next(n for n in archive.namelist() if "/val/" in f"/{n}" and n.endswith(".jpg"))
        graft.predict(job["result"]["model"], archive.read(name))
    served = time.monotonic()
    again = time.monotonic()
    _head(graft, dataset["id"], options.architecture)
    return {
        "dataset": dataset["id"],
        "metrics": job["metrics"],
        "ingest_seconds": round(ready - started, 3),
        "upload_to_served_seconds": round(served - started, 3),
        "head_cold_seconds": round(served - ready, 3),
        "head_cached_seconds": round(time.monotonic() - again, 3),
    }


def _head(graft: Graft, dataset_id: str, architecture: str) -> Json:
    job = graft.submit(dataset_id, backbone=architecture, recipe="head", model="benchmark")
    return graft.wait_for_job(job["id"], poll_seconds=0.02)


def _starts(graft: Graft, url: str, dataset_id: str) -> Json:
    """Return the seconds from acceptance to the first line of the child, over several jobs."""
    seconds = []
    for _ in range(_JOBS):
        job = graft.submit(dataset_id, backbone="squeezenet1_1", model="started")
        graft.wait_for_job(job["id"])
        lines = httpx2.get(f"{url}/v1/jobs/{job['id']}/files/progress.jsonl").text.splitlines()
        first = datetime.fromisoformat(json.loads(lines[0])["at"])
        seconds.append((first - datetime.fromisoformat(job["created_at"])).total_seconds())
    return {
        "jobs": _JOBS,
        "median_seconds": statistics.median(seconds),
        "max_seconds": max(seconds),
    }


if __name__ == "__main__":
    main()
