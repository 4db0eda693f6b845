"""How right a job's `eta_seconds` is while it runs.

    python benchmarks/eta.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER [--recipe finetune]

Runs a real service and real jobs one after another, asks for the job ten times a second, and
compares what it said with what was left in truth. Prints per tenth of the job's time the error as
part of the whole time and of the time left; with `--json FILE` writes them, with the seconds of
each phase.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2

from service.client import Graft, wait_until_ready
from service.embedded import embedded

_POLL_SECONDS = 0.1
_ENDED = ("succeeded", "failed", "cancelled")


def main() -> None:
    """Run the jobs, print the errors, write the JSON."""
    options = _parse_options()
    os.environ["GRAFT_OFFLINE"] = "1"
    os.environ["GRAFT_DEVICE"] = options.device
    catalogue = str((options.weights / "catalog.json").absolute())
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded(Path(folder) / "data", [catalogue]) as url,
        Graft(url) as graft,
    ):
        wait_until_ready(graft)
        dataset = graft.wait_for_dataset(graft.upload(options.archive, name="eta")["id"])
        reports = [_followed(graft, url, dataset["id"], options) for _ in range(options.jobs)]
    for report in reports:
        print(json.dumps({k: v for k, v in report.items() if k != "timeline"}, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(reports, indent=2) + "\n")


def _followed(
    graft: Graft, url: str, dataset_id: str, options: argparse.Namespace
) -> dict[str, Any]:
    parameters = {} if options.epochs is None else {"epochs": options.epochs}
    job_id = graft.submit(
        dataset_id, backbone=options.architecture, recipe=options.recipe, parameters=parameters
    )["id"]
    told: list[tuple[float, float | None]] = []  # when (Unix time), what was said
    while (job := graft.job(job_id))["status"] not in _ENDED:
        told.append((time.time(), (job["progress"] or {}).get("eta_seconds")))
        time.sleep(_POLL_SECONDS)
    assert job["status"] == "succeeded", job["error"]
    started, ended = _unix(job["started_at"]), _unix(job["finished_at"])
    lines = httpx2.get(f"{url}/v1/jobs/{job_id}/files/progress.jsonl").text.splitlines()
    return {
        "job": {"recipe": options.recipe, "architecture": options.architecture, **parameters},
        "seconds": round(ended - started, 3),
        "phases_seconds": _phases([json.loads(line) for line in lines], ended),
        "resources": job["resources"],
        **_errors(told, started, ended),
        "timeline": [[round(at - started, 2), eta] for at, eta in told],
    }


def _errors(told: list[tuple[float, float | None]], started: float, ended: float) -> dict[str, Any]:
    """Return the errors behind the first tenth, and how soon anything was said."""
    whole = ended - started
    known = [(at, eta) for at, eta in told if eta is not None]
    errors = [
        ((at - started) / whole, abs(eta - (ended - at)), ended - at)
        for at, eta in known
        if started + 0.1 * whole <= at < ended
    ]
    behind = [at for at, _ in told if started + 0.1 * whole <= at < ended]
    tenths = {
        f"{tenth / 10:.1f}": round(max(e for f, e, _ in errors if int(f * 10) == tenth) / whole, 3)
        for tenth in range(1, 10)
        if any(int(f * 10) == tenth for f, _, _ in errors)
    }
    return {
        "first_said_after": round((known[0][0] - started) / whole, 3) if known else None,
        "said_of_looks": round(len(errors) / max(1, len(behind)), 3),
        "worst_error_of_whole": round(max(e / whole for _, e, _ in errors), 3),
        "worst_error_of_whole_by_tenth": tenths,
        "looks_within_quarter_of_left": round(
            sum(e <= 0.25 * left for _, e, left in errors) / max(1, len(errors)), 3
        ),
    }


def _phases(lines: list[dict[str, Any]], ended: float) -> dict[str, float]:
    starts = [(line["phase"], _unix(line["at"])) for line in lines if line["kind"] == "phase"]
    pairs = pairwise([*starts, ("", ended)])
    return {phase: round(until - since, 3) for (phase, since), (_, until) in pairs}


def _unix(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder with catalog.json")
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--recipe", default="finetune")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="one after another")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
