"""What a worker knows about one running attempt: its only mutable record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.admission import Need
from jobs.errors import AttemptStalled
from jobs.executors.protocol import Handle
from jobs.metrics_files import MetricsFiles
from jobs.states import JobState
from jobs.store.jobs import Job, Lease
from jobs.trail import Trail


@dataclass
class Attempt:
    """One running attempt.

    Args:
        job: The row as it was claimed.
        slot: The kind of slot it takes.
        place: Which of the slots of that kind.
        lease: The right to write about the job.
        handle: Its child, as the executor knows it.
        folder: The attempt's folder.
        figures: What it measured, as files.
        trail: What its log lines and spans are found by.
        need: The memory it is taken to need.
        offset_bytes: How much of the child's progress has been read.
        last_line: `result` or `error`, once the child wrote it.
        candidate: What the child offered for publication before its end, until it is published.
        report_sha256: What an ingest or a training found in the images.
        checkpoints: How many this attempt wrote.
        stopping: What it is being stopped for, if a person asked.
        stall: Why it is being stopped, if it made no progress.
        renewed_at: When the lease was last prolonged (`time.monotonic`).
        progressed_at: When the child last said something (`time.monotonic`).
    """

    job: Job
    slot: str
    place: int
    lease: Lease
    handle: Handle
    folder: Path
    figures: MetricsFiles
    trail: Trail
    need: Need = Need(0, 0)  # noqa: RUF009 - frozen
    offset_bytes: int = 0
    last_line: dict[str, Any] | None = None
    candidate: dict[str, Any] | None = None
    report_sha256: str | None = None
    checkpoints: int = 0
    stopping: JobState | None = None
    stall: AttemptStalled | None = None
    renewed_at: float = field(default_factory=time.monotonic)
    progressed_at: float = field(default_factory=time.monotonic)

    def take(
        self,
        line: dict[str, Any],
        changes: dict[str, Any],
        rows: list[tuple[str, dict[str, Any]]],
    ) -> None:
        """Sort one line of the child into columns of the job, rows of its log, and what is kept.

        Args:
            line: As `jobs.progress` wrote it.
            changes: Columns to write; added to.
            rows: Rows of `(kind, data)` to append; added to.
        """
        kind = line["kind"]
        data = {key: value for key, value in line.items() if key not in ("kind", "at")}
        match kind:
            case "progress":
                changes["progress"] = data
                return
            case "phase":
                left = {"eta_seconds": data.pop("eta_seconds", None)}
                nothing = {"unit": None, "done": 0, "total": None}
                changes |= {"phase": data["phase"], "progress": {**nothing, **left}}
            case "resolved":
                changes["resolved"] = data["resolved"]
            case "metrics":
                changes["metrics"] = {**changes.get("metrics", {}), **data["metrics"]}
            case "checkpoint":
                self.checkpoints += 1
                changes |= {"faults": 0, "checkpoint_attempt": self.job.attempt}
            case "candidate" | "report" | "result" | "error":
                self._keep(line, data)
                return
            case _:  # log, warning: only a row
                pass
        rows.append((kind, data))

    def _keep(self, line: dict[str, Any], data: dict[str, Any]) -> None:
        """Keep what is not written as it is, but published."""
        match line["kind"]:
            case "candidate":
                self.candidate = data
            case "report":
                self.report_sha256 = data["report_sha256"]
            case _:
                self.last_line = line
