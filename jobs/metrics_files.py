"""The figures of a job as files in its folder: `metrics.jsonl` and TensorBoard's event file.

The worker writes them from the lines of the children, so that no training waits for a file and a
child needs no library for it. The progress files of the attempts stay the truth: where an append
fails, and when an attempt reports its first figures, both files are made again from them, so that
a job that was interrupted has one series without double steps.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs import tensorboard
from jobs.progress import FILE_NAME as PROGRESS_FILE
from jobs.progress import read_progress
from models_cache.durable import write_bytes
from models_cache.errors import InsufficientStorage

log = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "events.out.tfevents.graft"  # TensorBoard looks for `tfevents` in a name
_FINAL = "final/"  # prefix of what was measured of the model that is published


@dataclass(frozen=True)
class Point:
    """Figures that were measured together.

    Args:
        step: Optimizer steps made before; 0 for a fitted head.
        epoch: The same in passes over the training images; None where there are none.
        time: RFC 3339, UTC.
        figures: Finite values by name.
    """

    step: int
    epoch: float | None
    time: str
    figures: dict[str, float]

    def as_line(self) -> bytes:
        """Return the line of `metrics.jsonl`: figures beside `step`, `epoch` and `time`."""
        value = {"step": self.step, "epoch": self.epoch, "time": self.time, **self.figures}
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n"

    def as_record(self) -> bytes:
        """Return the record of the event file."""
        return tensorboard.scalars(_unix_seconds(self.time), self.step, self.figures)


def points_of(lines: Iterable[dict[str, Any]], last_step: int = 0) -> list[Point]:
    """Return what the lines of one attempt measured, in their order.

    Args:
        lines: As `jobs.progress` wrote them.
        last_step: Where the published model's figures belong if no line before says it.
    """
    points = []
    for line in lines:
        if not line.get("metrics"):
            continue
        figures = {name: v for name, v in line["metrics"].items() if math.isfinite(v)}
        if line["kind"] == "metrics":
            last_step = line["step"]
            points.append(Point(last_step, line.get("epoch"), line["at"], figures))
        elif line["kind"] == "result":
            final = {f"{_FINAL}{name}": value for name, value in figures.items()}
            points.append(Point(last_step, None, line["at"], final))
    return points


def joined(earlier: Sequence[Point], later: Sequence[Point]) -> list[Point]:
    """Return the series of an attempt and those before it.

    The later attempt went on from a checkpoint at or before its first point: what the earlier
    ones measured behind that is measured again.
    """
    if not later:
        return list(earlier)
    first = later[0]
    kept = [point for point in earlier if point.step < first.step]
    for point in earlier:
        others = {name: v for name, v in point.figures.items() if name not in first.figures}
        if point.step == first.step and others:
            kept.append(replace(point, figures=others))
    return [*kept, *later]


class MetricsFiles:
    """Both files of a job, as one attempt goes on with them.

    Args:
        run_folder: Folder of the job, with one folder per attempt.
        attempt: Number of the attempt, from 1.
    """

    def __init__(self, run_folder: Path, attempt: int) -> None:
        self._run_folder = run_folder
        self._attempt = attempt
        self._last_step = 0
        self._is_whole = False  # whether the files hold all points up to the last call

    def take(self, lines: Sequence[dict[str, Any]], offset_bytes: int) -> None:
        """Add what some lines of the child measured; a full disk costs the files, not the job.

        Args:
            lines: Whole lines of its progress file.
            offset_bytes: Where in that file they end.
        """
        points = points_of(lines, self._last_step)
        if not points:
            return
        try:
            if self._is_whole:
                self._append(points)
            else:
                points = self._make_again(offset_bytes)
        except (OSError, InsufficientStorage):
            log.exception("the files of figures in %s are behind", self._run_folder)
            self._is_whole = False
            return
        self._last_step = points[-1].step
        self._is_whole = True

    def _append(self, points: Sequence[Point]) -> None:
        _append(self._run_folder / METRICS_NAME, b"".join(p.as_line() for p in points))
        _append(self._run_folder / EVENTS_NAME, b"".join(p.as_record() for p in points))

    def _make_again(self, offset_bytes: int) -> list[Point]:
        points: list[Point] = []
        for attempt in range(1, self._attempt + 1):
            path = self._run_folder / str(attempt) / PROGRESS_FILE
            end_bytes = offset_bytes if attempt == self._attempt else None
            lines, _ = read_progress(path, 0, end_bytes)
            last_step = points[-1].step if points else 0
            points = joined(points, points_of(lines, last_step))
        header = tensorboard.file_header(_unix_seconds(points[0].time))
        events = header + b"".join(point.as_record() for point in points)
        write_bytes(
            self._run_folder / METRICS_NAME, b"".join(p.as_line() for p in points), "figures"
        )
        write_bytes(self._run_folder / EVENTS_NAME, events, "figures")
        return points


def _append(path: Path, data: bytes) -> None:
    """Append in one write; a short one is an error, as `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path.name} could not be appended to")
    finally:
        os.close(descriptor)


def _unix_seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
