"""Tables that justify the defaults of the recipes: one option changed at a time, several seeds.

    python benchmarks/preset_tables.py --archive hymenoptera.zip --persons PennFudanPed.zip \
        --weights WEIGHTS_FOLDER --work FOLDER

Trains everything in `grid()` that the JSON-lines file in the work folder does not have yet, in its
order, writes each result down as it comes, and prints the tables of what is there. It can be
stopped at any time and started again; `--most N` ends it after N trainings of a network, `--only
PATTERN` trains just the settings whose name the regular expression is found in. Needs no network.

Figures of a row are the mean (standard deviation) over seeds of accuracy, with unequal classes of
macro recall, and of loss in nats on the held-out images, three times: "chosen" is the best epoch by
the recipe's own rule on all held-out images, which flatters whatever varies most; in "fair" the
epoch is chosen on one half of these images and judged on the other, both ways; "last epoch" is that
of no choice at all. The fitted head is a candidate in the first two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

from preset_training import EMA_DECAY, Setting, Sources, run  # noqa: E402 - after the path
from step_overhead import run_as_trainings_do  # noqa: E402

_RESULTS = "preset_tables.jsonl"
_SEEDS = (0, 1, 2)
_PATIENCES = (1, 2, 3)
_HALVES = ("first half", "second half")
_DEFAULTS = "defaults"

Figures = dict[str, float]
Curve = list[dict[str, Figures]]


@dataclass(frozen=True)
class Training:
    """One row of a table, once for each seed.

    Args:
        setting: What is learned from.
        label: What the row is called.
        parameters: What differs from the recipe's defaults.
        recipe: Its name.
        seeds: Of the runs.
    """

    setting: Setting
    label: str
    parameters: dict[str, Any] = field(default_factory=dict)
    recipe: str = "finetune"
    seeds: tuple[int, ...] = _SEEDS


_OPTIONS: dict[str, dict[str, Any]] = {
    _DEFAULTS: {},
    "lr x 3": {"lr_head": 3e-4, "lr_backbone": 9e-5},
    "lr x 0.3": {"lr_head": 3e-5, "lr_backbone": 9e-6},
    "last 4 stages": {"tune": 4},
}
_LATER: dict[str, dict[str, Any]] = {
    "trivialaugment": {"augmentation": "trivialaugment"},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "mixup_alpha 0.2": {"mixup_alpha": 0.2},
    "randaugment": {"augmentation": "randaugment"},
    "cutmix_alpha 1": {"cutmix_alpha": 1.0},
    "12 epochs": {"epochs": 12},
}
_WEIGHING = {
    _DEFAULTS: {},
    "class_weights none": {"class_weights": "none"},
}
_FEW = {name: _OPTIONS[name] for name in (_DEFAULTS, "lr x 3")}
_MOBILENET, _SQUEEZENET = "mobilenet_v2", "squeezenet1_1"


def grid() -> Iterator[Training]:
    """Yield all rows, those that matter most first."""
    all_insects = Setting("insects", _MOBILENET)
    yield from _rows(all_insects, _OPTIONS)
    yield from _rows(Setting("insects", _SQUEEZENET), _OPTIONS)
    yield from _rows(Setting("insects", _MOBILENET, (20, 20)), _FEW)
    unequal = Setting("insects", _MOBILENET, (20, 100))
    yield from _rows(unequal, _WEIGHING)
    yield from _rows(unequal, _WEIGHING, "head", tuple(range(10)))
    yield from _rows(Setting("insects", _MOBILENET, (10, 10)), _FEW)
    yield from _rows(Setting("three", _MOBILENET), _FEW)
    yield from _rows(Setting("insects", _MOBILENET, (50, 50)), _FEW)
    yield from _rows(all_insects, _LATER)
    yield from _rows(Setting("insects", _SQUEEZENET), _LATER)
    yield Training(all_insects, "scratch", {}, "scratch", (0,))


def _rows(
    setting: Setting,
    options: dict[str, dict[str, Any]],
    recipe: str = "finetune",
    seeds: tuple[int, ...] = _SEEDS,
) -> Iterator[Training]:
    for label, parameters in options.items():
        label = label if recipe == "finetune" else f"{recipe}: {label}"
        yield Training(setting, label, parameters, recipe, seeds)


def main() -> None:
    """Train what is missing, then print the tables."""
    options = _parse_options()
    run_as_trainings_do()
    options.work.mkdir(parents=True, exist_ok=True)
    sources = Sources(
        options.archive, options.persons, options.weights, options.work, options.threads
    )
    path, left = options.work / _RESULTS, options.most
    for training, seed in _missing(path, options.only):
        if training.recipe != "head":  # which takes no time
            if left == 0:
                continue
            left -= 1
        record = run(
            training.setting, training.recipe, training.parameters, seed, sources,
            averages=training.label == _DEFAULTS and training.setting.per_class is None,
        )  # fmt: skip
        key = {"setting": training.setting.name, "label": training.label, "seed": seed}
        with path.open("a") as file:
            file.write(json.dumps({**key, **record}) + "\n")
    _print_tables(_read(path))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", type=Path, required=True, help="hymenoptera.zip")
    parser.add_argument("--persons", type=Path, required=True, help="PennFudanPed.zip")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with catalog.json")
    parser.add_argument("--work", type=Path, required=True, help="results and caches")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--most", type=int, default=-1, help="trainings; all that are missing")
    parser.add_argument("--only", default="", help="pattern in the names of settings")
    return parser.parse_args()


def _missing(path: Path, only: str) -> Iterator[tuple[Training, int]]:
    """Yield what has no result yet, the first seed of a setting's rows before the second."""
    done = {(r["setting"], r["label"], r["seed"]) for r in _read(path)}
    for own in _groups(grid()):
        if not re.search(only, own[0].setting.name):
            continue
        for seed in sorted({seed for row in own for seed in row.seeds}):
            for row in own:
                if seed in row.seeds and (row.setting.name, row.label, seed) not in done:
                    yield row, seed


def _groups(rows: Iterator[Training]) -> Iterator[list[Training]]:
    """Yield rows that follow one another in the grid with the same setting and recipe."""
    for _, group in itertools.groupby(rows, key=lambda row: (row.setting, row.recipe)):
        yield list(group)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _print_tables(records: list[dict[str, Any]]) -> None:
    for setting in dict.fromkeys(record["setting"] for record in records):
        rows: dict[str, list[dict[str, Figures]]] = {}
        for record in records:
            if record["setting"] == setting:
                for label, row in _derived(record):
                    rows.setdefault(label, []).append(row)
        score = "recall" if _is_unequal(setting) else "accuracy"
        print(f"\n{setting}\n")
        print(f"| changed | seeds | epochs | chosen: {score}, loss | fair | last epoch |")
        print("|---|---|---|---|---|---|")
        for label, found in rows.items():
            epochs = statistics.fmean(row["last"]["epoch"] for row in found)
            cells = (
                ", ".join(_spread(found, kind, name) for name in (score, "loss"))
                for kind in ("chosen", "fair", "last")
            )
            print(f"| {label} | {len(found)} | {epochs:.1f} | {' | '.join(cells)} |")


def _is_unequal(setting: str) -> bool:
    """Tell whether the classes of a setting differ in size: then recalls are averaged over them."""
    drawn = re.search(r"(\d+):(\d+)$", setting)
    return drawn is not None and drawn[1] != drawn[2]


def _derived(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Figures]]]:
    """Yield the rows of one training: its own, and those of what was judged beside it."""
    curve, label = record["curve"], record["label"]
    if label != _DEFAULTS:
        yield label, _row(curve, _by_accuracy)
        return
    yield "head alone", _row(curve[:1], _by_accuracy)
    yield label, _row(curve, _by_accuracy)
    yield "best_epoch loss", _row(curve, _by_loss)
    for patience in _PATIENCES:
        yield f"patience_epochs {patience}", _row(_patient(curve, patience), _by_accuracy)
    for name, found in record.items():
        if name == "ema":
            yield f"ema_decay {EMA_DECAY}", _row(found, _by_accuracy)
        if name.startswith("best epochs"):
            fair = _mean([found[a][b] for a, b in (_HALVES, _HALVES[::-1])])
            yield name, {"chosen": found["all"]["all"], "fair": fair, "last": _last(curve)}


def _row(curve: Curve, rank: Callable[[Figures], tuple[float, ...]]) -> dict[str, Figures]:
    """Return the figures of the best epoch of a curve, chosen on all images and by halves."""

    def best(part: str) -> int:
        return max(range(len(curve)), key=lambda epoch: rank(curve[epoch][part]))

    fair = [curve[best(a)][b] for a, b in (_HALVES, _HALVES[::-1])]
    return {"chosen": curve[best("all")]["all"], "fair": _mean(fair), "last": _last(curve)}


def _last(curve: Curve) -> Figures:
    return {**curve[-1]["all"], "epoch": len(curve) - 1}


def _by_accuracy(figures: Figures) -> tuple[float, ...]:
    return figures["accuracy"], -figures["loss"]


def _by_loss(figures: Figures) -> tuple[float, ...]:
    return (-figures["loss"],)


def _patient(curve: Curve, patience: int) -> Curve:
    """Return what early stopping would have left of a curve."""
    best = 0
    for epoch in range(1, len(curve)):
        if _by_accuracy(curve[epoch]["all"]) > _by_accuracy(curve[best]["all"]):
            best = epoch
        if epoch - best >= patience:
            return curve[: epoch + 1]
    return curve


def _mean(figures: list[Figures]) -> Figures:
    return {name: statistics.fmean(f[name] for f in figures) for name in figures[0]}


def _spread(rows: list[dict[str, Figures]], kind: str, name: str) -> str:
    values = [row[kind][name] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ({statistics.stdev(values):.3f})"


if __name__ == "__main__":
    main()
