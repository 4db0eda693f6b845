"""Statements for operators: counts and ages over all projects, as `/metrics` tells them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from jobs.states import HELD, TERMINAL, JobState
from jobs.store.lease_clock import lease_now
from jobs.store.tables import jobs, workers

_UNFINISHED = [state for state in JobState if state not in TERMINAL]
_MOST_NUMBERS = 500  # in one statement


@dataclass(frozen=True)
class EndedJob:
    """What is counted of a job that has ended; `started_at` is None if it never began."""

    type: str
    status: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime


@dataclass(frozen=True)
class Health:
    """How workers and their jobs are.

    Args:
        leases: Jobs that a worker holds.
        leases_overdue: Of these, those whose lease is over: their worker has not been heard of.
        jobs_retried: Unfinished jobs in their second or a later attempt.
        heartbeat_age_seconds: Since the oldest last sign of a registered worker; 0 without one.
    """

    leases: int
    leases_overdue: int
    jobs_retried: int
    heartbeat_age_seconds: float


def unfinished_numbers(connection: Connection) -> set[int]:
    """Return the numbers of all jobs that have not ended."""
    return set(connection.scalars(select(jobs.c.number).where(jobs.c.status.in_(_UNFINISHED))))


def newest_number(connection: Connection) -> int:
    """Return the number of the newest job; 0 if there is none."""
    return connection.scalar(select(func.max(jobs.c.number))) or 0


def ended(connection: Connection, numbers: Collection[int], after: int) -> Iterator[EndedJob]:
    """Yield the jobs that have ended, of these numbers and of all above `after`."""
    columns = [jobs.c[name] for name in EndedJob.__annotations__]
    statement = select(*columns).where(jobs.c.status.in_(TERMINAL))
    parts = [jobs.c.number > after]
    ordered = sorted(numbers)
    starts = range(0, len(ordered), _MOST_NUMBERS)
    parts += [jobs.c.number.in_(ordered[at : at + _MOST_NUMBERS]) for at in starts]
    for part in parts:
        for row in connection.execute(statement.where(part)):
            yield EndedJob(**row._mapping)


def health(connection: Connection) -> Health:
    """Return how workers and their jobs are."""
    now = lease_now(connection)
    count = select(func.count()).select_from(jobs)
    held = count.where(jobs.c.status.in_(HELD))
    beat: datetime | None = connection.scalar(select(func.min(workers.c.heartbeat_at)))
    return Health(
        leases=connection.scalar(held) or 0,
        leases_overdue=connection.scalar(held.where(jobs.c.lease_until < now)) or 0,
        jobs_retried=connection.scalar(
            count.where(jobs.c.status.in_(_UNFINISHED), jobs.c.attempt > 1)
        )
        or 0,
        heartbeat_age_seconds=0.0 if beat is None else max(0.0, (now - beat).total_seconds()),
    )
