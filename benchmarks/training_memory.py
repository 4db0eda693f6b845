"""What fine-tuning's memory allocator settings cost in memory and save in time.

    python benchmarks/training_memory.py --archive hymenoptera.zip [--json PATH]

The fine-tuning loop of `step_overhead.py` on the CPU, in a process of its own for each setting
since C libraries read theirs when they are loaded, turn and turn about. Prints for each setting the
peak of resident memory, the page faults of a step, and its time to that of the settings in use.

Reads the peak and the faults from `getrusage`: Linux with glibc.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import step_overhead as steps  # noqa: E402 - after the path
import torch  # noqa: E402

from jobs.executors.local import TRAINING_ENVIRONMENT  # noqa: E402
from jobs.memory import peak_bytes_of_process  # noqa: E402
from jobs.training.device import set_up  # noqa: E402

_MMAP, _TRIM, _TUNABLES = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"
_GLIBCS_OWN = {_MMAP: "", _TRIM: ""}
_HUGE_PAGES = {_TUNABLES: "glibc.malloc.hugetlb=1"}
_SETTINGS: dict[str, dict[str, str]] = {
    "in use": {},
    "huge pages": _HUGE_PAGES,
    "huge pages, mmap from 64 MiB": {_MMAP: str(1 << 26), **_HUGE_PAGES},
    "huge pages, mmap from 16 MiB": {_MMAP: str(1 << 24), **_HUGE_PAGES},
    "huge pages, glibc's own": {**_GLIBCS_OWN, **_HUGE_PAGES},
    "glibc's own": _GLIBCS_OWN,
    "mmap from 64 MiB": {_MMAP: str(1 << 26)},
    "mmap from 16 MiB": {_MMAP: str(1 << 24)},
    "trim from 1 GiB": {_TRIM: str(1 << 30)},
    "1 arena": {"MALLOC_ARENA_MAX": "1"},
    "torch's huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}


def main() -> None:
    """Run every setting by turns, print the table, write the JSON."""
    options = _parse_options()
    if options.child is not None:
        print(json.dumps(_child(options)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.settings}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, runs in found.items():
                runs.append(_in_a_process(Path(folder), _SETTINGS[name]))
    report = {name: _summary(runs) for name, runs in found.items()}
    used = report.get("in use")
    for figures in report.values():
        if used is not None:
            for name in ("processor_seconds_per_step", "fastest_step_seconds"):
                figures[f"{name}_to_in_use"] = round(figures[name] / used[name], 3)
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    steps.add_options(parser)
    parser.add_argument("--settings", nargs="+", default=list(_SETTINGS), choices=_SETTINGS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(folder: Path, setting: dict[str, str]) -> dict[str, Any]:
    environment = {**os.environ, **TRAINING_ENVIRONMENT, **setting}
    environment = {name: value for name, value in environment.items() if value}
    command = [sys.executable, *sys.argv, "--child", str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=True)
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def _child(options: argparse.Namespace) -> dict[str, Any]:
    set_up(torch.device("cpu"), options.threads)
    dataset = steps.load(options.child, options)
    start_bytes = peak_bytes_of_process()
    faults, processor_seconds = _usage().ru_minflt, time.process_time()
    seconds = steps.ours({}, dataset, options)
    return {
        "start_bytes": start_bytes,
        "peak_bytes": peak_bytes_of_process(),
        "page_faults_per_step": (_usage().ru_minflt - faults) // (options.steps + 1),
        "processor_seconds_per_step": (time.process_time() - processor_seconds)
        / (options.steps + 1),
        "step_seconds": seconds,
    }


def _usage() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)


def _summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [each for run in runs for each in run["step_seconds"]]
    return {
        "start_gb": round(max(run["start_bytes"] for run in runs) / 1e9, 2),
        "peak_gb": round(max(run["peak_bytes"] for run in runs) / 1e9, 2),
        "page_faults_per_step": max(run["page_faults_per_step"] for run in runs),
        "processor_seconds_per_step": round(
            min(run["processor_seconds_per_step"] for run in runs), 3
        ),
        "fastest_step_seconds": round(min(seconds), 3),
        "median_step_seconds": round(statistics.median(seconds), 3),
    }


if __name__ == "__main__":
    main()
