"""Statements of workers: claims, leases, and what is written under a lease."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    update,
)

from jobs.errors import LeaseLost
from jobs.states import HELD, JobEvent, JobState, next_state
from jobs.store import events, lease_clock
from jobs.store.database import utc_now
from jobs.store.jobs import Job, Lease, job_of
from jobs.store.lease_clock import lease_now
from jobs.store.tables import datasets, jobs

#: No job is put off for so long.
_LONGEST_WAIT = timedelta(minutes=10)
#: Phase of a queued job for which a slot, but no memory, is free.
WAITING_FOR_MEMORY = "waiting-for-memory"
#: The same, where the disk is almost full.
WAITING_FOR_SPACE = "waiting-for-space"


def next_claimable(connection: Connection, types: Collection[str]) -> Job | None:
    """Return, without a lock, the job that `claim` would take."""
    number = _claimable(types).scalar_subquery()
    row = connection.execute(select(jobs).where(jobs.c.number == number)).one_or_none()
    return None if row is None else job_of(row)


def wait_for(connection: Connection, job_id: str, phase: str, reason: str) -> None:
    """Say why a queued job does not start although a slot is free."""
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status == JobState.QUEUED)
        .values(phase=phase)
    )
    if changed.rowcount:
        rows = [("phase", {"phase": phase}), ("log", {"message": reason})]
        events.append(connection, job_id, rows)


def claim(
    connection: Connection,
    types: Collection[str],
    worker_id: str,
    token: str,
    lease: timedelta,
    *,
    only: int | None = None,
) -> Job | None:
    """Take the most urgent claimable job of `types`: one statement, so that two cannot.

    Args:
        connection: In a writing transaction.
        types: Which types of jobs.
        worker_id: Who takes it.
        token: Of the new lease.
        lease: How long it holds.
        only: Number of the job that may be taken, where another would not do.
    """
    now, lease_end = utc_now(), lease_now(connection) + lease
    most_urgent = _claimable(types)
    if only is not None:
        most_urgent = most_urgent.where(jobs.c.number == only)
    row = connection.execute(
        update(jobs)
        .where(
            jobs.c.number == most_urgent.with_for_update(skip_locked=True).scalar_subquery(),
            jobs.c.status == JobState.QUEUED,
        )
        .values(
            status=next_state("", JobState.QUEUED, JobEvent.CLAIM),
            attempt=jobs.c.attempt + 1,
            worker_id=worker_id,
            lease_token=token,
            lease_until=lease_end,
            started_at=func.coalesce(jobs.c.started_at, _as_text(now)),
            not_before=None,
            phase=None,
            progress=None,
        )
        .returning(*jobs.c)
    ).one_or_none()
    if row is None:
        return None
    job = job_of(row)
    data = {"status": job.status.value, "attempt": job.attempt}
    events.append(connection, job.id, [("state", data)])
    return job


def renew(connection: Connection, lease: Lease, length: timedelta) -> JobState:
    """Prolong a lease and return the job's state, which may say that a stop was asked for.

    Raises:
        LeaseLost: The job is no longer held with this token.
    """
    row = connection.execute(
        update(jobs)
        .where(_held_by(lease))
        .values(lease_until=lease_now(connection) + length)
        .returning(jobs.c.status)
    ).one_or_none()
    if row is None:
        raise LeaseLost(lease.job_id)
    return JobState(row.status)


def status_of_held(connection: Connection, lease: Lease) -> JobState:
    """Return the state of a held job.

    Raises:
        LeaseLost: The job is no longer held with this token.
    """
    status = connection.scalar(select(jobs.c.status).where(_held_by(lease)))
    if status is None:
        raise LeaseLost(lease.job_id)
    return JobState(status)


def record(
    connection: Connection,
    lease: Lease,
    changes: dict[str, Any],
    log: list[tuple[str, dict[str, Any]]],
) -> None:
    """Write progress of a held job: columns and rows of its event log.

    Raises:
        LeaseLost: The job is no longer held with this token.
    """
    merged = dict(changes)
    if "metrics" in merged:
        known = connection.scalar(select(jobs.c.metrics).where(jobs.c.id == lease.job_id)) or {}
        merged["metrics"] = {**known, **merged["metrics"]}
    # A row is written even without changes: it is the check of the lease.
    merged = merged or {"lease_token": lease.token}
    done = connection.execute(update(jobs).where(_held_by(lease)).values(**merged))
    if done.rowcount != 1:
        raise LeaseLost(lease.job_id)
    events.append(connection, lease.job_id, log)


def held_by_workers(connection: Connection, worker_ids: Collection[str]) -> list[Job]:
    """Return the jobs held by any of these workers."""
    rows = connection.execute(
        select(jobs).where(jobs.c.worker_id.in_(worker_ids), jobs.c.status.in_(HELD))
    )
    return [job_of(row) for row in rows]


def with_lease_over(connection: Connection, longest: timedelta) -> list[Job]:
    """Return the held jobs whose lease has run out: their worker, or its host, is gone.

    Args:
        connection: To read with.
        longest: How long a lease is.
    """
    is_over = lease_clock.over(connection, jobs.c.lease_until, longest)
    rows = connection.execute(select(jobs).where(jobs.c.status.in_(HELD), is_over))
    return [job_of(row) for row in rows]


def _held_by(lease: Lease) -> ColumnElement[bool]:
    return and_(
        jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token, jobs.c.status.in_(HELD)
    )


def _claimable(types: Collection[str]) -> Select[tuple[int]]:
    """Queued, due, and not waiting for a dataset that is still being checked."""
    dataset_pending = exists().where(
        datasets.c.id == jobs.c.dataset_id, datasets.c.status == "processing"
    )
    now = utc_now()
    return (
        select(jobs.c.number)
        .where(
            jobs.c.status == JobState.QUEUED,
            jobs.c.type.in_(types),
            or_(
                jobs.c.not_before.is_(None),
                jobs.c.not_before <= now,
                jobs.c.not_before > now + _LONGEST_WAIT,  # the clock was set back meanwhile
            ),
            or_(jobs.c.type == "ingest", ~dataset_pending),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.number)
        .limit(1)
    )


def _as_text(time: datetime) -> ColumnElement[datetime]:
    """Return a bound time of the column's own type, for use inside SQL functions."""
    return bindparam(None, time, type_=jobs.c.started_at.type)
