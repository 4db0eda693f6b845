"""The file through which a child tells its worker how far it is.

JSON lines, appended with one `write` each, so that a reader sees whole lines; the reader keeps a
byte offset, so that any worker (or one on another host with the same folder) can go on reading.
The last line of a child that ended well is a `result` or an `error`.
"""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.eta import Estimate
from models_cache import faults
from models_cache.errors import (
    GraftError,
    InsufficientStorage,
    to_wire,
)

FILE_NAME = "progress.jsonl"
_MIN_INTERVAL_SECONDS = 0.1  # between two progress lines: a reader polls no faster


class ProgressWriter:
    """Appends the lines of one attempt to its progress file.

    Args:
        path: The file; its folder exists.
        estimate: How long it will still take; without one, nothing is said about that.
    """

    def __init__(self, path: Path, estimate: Estimate | None = None) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._torn = False
        self._estimate = estimate
        self._last_progress = 0.0

    def expect(self, estimate: Estimate) -> None:
        """Say from now on how long it will still take."""
        self._estimate = estimate

    def phase(self, phase: str) -> None:
        """Say which part of the work begins."""
        if self._estimate is not None:
            self._estimate.begin(phase)
        self._last_progress = 0.0
        self._append({"kind": "phase", "phase": phase, "eta_seconds": self._eta_seconds()})

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Say how much of the phase is done; too frequent lines are dropped, the last never.

        Args:
            unit: What is counted: `images`, `steps`, `penalties`, `heads`, `gflops` or `bytes`.
            done: How many are done.
            total: How many there are; None if unknown.
        """
        if self._estimate is not None:
            self._estimate.advance(done, total)
        now = time.monotonic()
        if done != total and now - self._last_progress < _MIN_INTERVAL_SECONDS:
            return
        self._last_progress = now
        line = {"unit": unit, "done": done, "total": total, "eta_seconds": self._eta_seconds()}
        self._append({"kind": "progress", **line})

    def metrics(self, step: int, metrics: dict[str, float], epoch: float | None = None) -> None:
        """Report numbers measured at an optimizer step, after so many passes over the images."""
        self._append({"kind": "metrics", "step": step, "epoch": epoch, "metrics": metrics})

    def resolved(self, resolved: dict[str, Any]) -> None:
        """Report what every `auto` became, and the numerics of this attempt."""
        self._append({"kind": "resolved", "resolved": resolved})

    def checkpoint(self, step: int) -> None:
        """Report that a checkpoint of this step is on disk."""
        self._append({"kind": "checkpoint", "step": step})

    def warning(self, code: str, message: str) -> None:
        """Report something the user should know that is not an error."""
        self._append({"kind": "warning", "code": code, "message": message})

    def log(self, message: str) -> None:
        """Report a line of prose."""
        self._append({"kind": "log", "message": message})

    def report(self, report_sha256: str) -> None:
        """Report the blob that holds what was found in the images, before the last line."""
        self._append({"kind": "report", "report_sha256": report_sha256})

    def candidate(self, candidate: dict[str, Any]) -> None:
        """Offer a version that can be published now; the work goes on, and may offer it again."""
        self._append({"kind": "candidate", **candidate}, durable=True)

    def result(self, result: dict[str, Any]) -> None:
        """Write the last line of work that succeeded."""
        self._append({"kind": "result", **result}, durable=True)

    def error(self, error: GraftError) -> None:
        """Write the last line of work that failed for a reason that can be told."""
        self._append({"kind": "error", **to_wire(error)}, durable=True)

    def _eta_seconds(self) -> float | None:
        left_seconds = None if self._estimate is None else self._estimate.left_seconds()
        return None if left_seconds is None else round(left_seconds, 3)

    def _append(self, line: dict[str, Any], *, durable: bool = False) -> None:
        faults.reach("progress.append")
        stamped = {**line, "at": datetime.now(UTC).isoformat()}
        data = json.dumps(stamped, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if self._torn:  # a line that a full disk cut off must not swallow this one
            data = b"\n" + data
        self._torn = os.write(self._descriptor, data) != len(data)
        if self._torn:
            raise InsufficientStorage("writing progress")
        if durable:
            os.fsync(self._descriptor)


def read_progress(
    path: Path, offset_bytes: int, end_bytes: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines behind a byte offset, and the offset behind them.

    Args:
        path: The file.
        offset_bytes: Where a line begins.
        end_bytes: Where to stop; None for the end of the file.

    A file that does not exist yet has no lines. An unfinished last line is left for later; one
    that a full disk cut off is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset_bytes)
            data = file.read(-1 if end_bytes is None else end_bytes - offset_bytes)
    except FileNotFoundError:
        return [], offset_bytes
    end = data.rfind(b"\n") + 1
    lines = [_parsed(line) for line in data[:end].splitlines()]
    return [line for line in lines if line is not None], offset_bytes + end


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return value
