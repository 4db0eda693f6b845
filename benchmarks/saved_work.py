"""What fine-tuning saves by keeping activations of frozen stages, and by making batches ahead.

    python benchmarks/saved_work.py --archive hymenoptera.zip [--json PATH]

The loop of `step_overhead.py` with each of the two on and off, turn and turn about in one process:

- the last stages alone learn, and each picture comes as it is and mirrored: seconds of a whole
  training, the pass that makes the activations included;
- the next batch is made in a thread while the present one is learned from, or in between: seconds
  of a step.

Prints the ratios and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import step_overhead as steps  # noqa: E402 - after the path

from jobs.datasets.loading import LoadedDataset  # noqa: E402
from jobs.training import loop  # noqa: E402
from jobs.training.device import set_up  # noqa: E402
from models_cache.devices import choose_device  # noqa: E402

_EPOCHS = (6, 12)
_MADE_AHEAD = loop.made_ahead


def main() -> None:
    """Run all by turns, print the ratios, write the JSON."""
    options = _parse_options()
    steps.run_as_trainings_do()
    set_up(choose_device(options.device), options.threads)
    report: dict[str, Any] = {"architecture": options.architecture, "threads": options.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = steps.load(folder, options)
        if "activations" in options.parts:
            report["kept activations"] = _activations(dataset, folder, options)
        if "ahead" in options.parts:
            report["batches made ahead"] = _ahead(dataset, options)
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    steps.add_options(parser)
    parser.add_argument("--tune", type=int, default=4, help="stages that learn")
    parts = ("activations", "ahead")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    return parser.parse_args()


def _activations(
    dataset: LoadedDataset, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    found = {}
    for epochs in _EPOCHS:
        changes = {"epochs": epochs, "tune": options.tune, "augmentation": "flip"}
        wall: dict[str, list[float]] = {"computed": [], "kept": []}
        processor: dict[str, list[float]] = {"computed": [], "kept": []}
        for _ in range(options.rounds):
            for name, where in (("computed", None), ("kept", folder)):
                started, used = time.monotonic(), time.process_time()
                steps.ours(changes, dataset, options, where)
                wall[name].append(time.monotonic() - started)
                processor[name].append(time.process_time() - used)
        found[f"{epochs} epochs"] = {
            "wall clock": _compared(wall, "kept", "computed"),
            "processor": _compared(processor, "kept", "computed"),
        }
    return found


def _ahead(dataset: LoadedDataset, options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for augmentation in ("crop", "trivialaugment"):
        seconds: dict[str, list[float]] = {"in between": [], "ahead": []}
        for turn in range(options.rounds + 1):
            for name, make in (("in between", _in_between), ("ahead", _MADE_AHEAD)):
                loop.made_ahead = make
                measured = steps.ours({"augmentation": augmentation}, dataset, options)
                if turn:  # the first turn warms up
                    seconds[name] += measured
        found[augmentation] = _compared(seconds, "ahead", "in between")
    return found


@dataclass(frozen=True)
class _InBetween:
    """What is made when it is taken."""

    take: Callable[[], Any]


def _in_between(make: Callable[[int], Any], numbers: Iterable[int]) -> Generator[_InBetween]:
    for number in numbers:
        yield _InBetween(partial(make, number))


def _compared(seconds: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Return ratios of the shortest and of the median times."""
    found = {f"{name}, seconds": round(min(times), 3) for name, times in seconds.items()}
    for what, of in (("shortest", min), ("median", statistics.median)):
        found[f"ratio of the {what}"] = round(of(seconds[one]) / of(seconds[other]), 3)
    return found


if __name__ == "__main__":
    main()
