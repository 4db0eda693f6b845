"""Counts of jobs that have ended, as counters that only grow, though rows may be deleted.

Each look compares the unfinished jobs with those of the look before: what is missing has ended.
Every api process counts for itself, from its start on.
"""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy import Connection

from jobs.store import figures
from jobs.store.figures import EndedJob

_SECONDS_BUCKETS = (1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)


class JobMetrics:
    """Counters and histograms of jobs. Thread-safe.

    Args:
        registry: Where they are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "graft_jobs_ended", "Jobs by how they ended", ("type", "outcome"), registry=registry
        )
        self._attempts = Counter(
            "graft_job_attempts", "Attempts of jobs that ended", ("type",), registry=registry
        )
        self._waited = Histogram(
            "graft_job_wait_seconds",
            "From acceptance to the first attempt, of jobs that ended",
            ("type",),
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._ran = Histogram(
            "graft_job_run_seconds",
            "From the first attempt to the end, pauses included",
            ("type",),
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._unfinished: set[int] = set()
        self._newest = 0
        self._lock = threading.Lock()

    def begin(self, connection: Connection) -> None:
        """Leave out what has ended before now."""
        self._unfinished = figures.unfinished_numbers(connection)
        self._newest = figures.newest_number(connection)

    def look(self, connection: Connection) -> None:
        """Count what has ended since the last look; `connection` sees one snapshot."""
        with self._lock:
            unfinished = figures.unfinished_numbers(connection)
            newest = figures.newest_number(connection)
            for job in figures.ended(connection, self._unfinished - unfinished, self._newest):
                self._count(job)
            self._unfinished, self._newest = unfinished, newest

    def _count(self, job: EndedJob) -> None:
        self._ended.labels(job.type, job.status).inc()
        self._attempts.labels(job.type).inc(job.attempt)
        if job.started_at is not None:
            waited = (job.started_at - job.created_at).total_seconds()
            ran = (job.finished_at - job.started_at).total_seconds()
            self._waited.labels(job.type).observe(max(0.0, waited))
            self._ran.labels(job.type).observe(max(0.0, ran))
