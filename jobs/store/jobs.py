"""Statements about jobs: acceptance, claims, leases, transitions, progress."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from jobs.errors import IllegalTransition, JobNotEnded, JobNotFound, LeaseLost
from jobs.states import HELD, TERMINAL, JobEvent, JobState, next_state
from jobs.store import events
from jobs.store.database import utc_now
from jobs.store.tables import DEFAULT_PROJECT, datasets, jobs

#: Jobs that people ask for; the others serve datasets and weights and are not listed.
PUBLIC_TYPES = frozenset({"fine_tune", "race", "evaluate", "batch_predict", "export"})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request and how far it is; see `tables.jobs` for the columns."""

    number: int
    id: str
    project: str
    type: str
    status: JobState
    phase: str | None
    priority: int
    dataset_id: str | None
    model: str | None
    spec: dict[str, Any]
    resolved: dict[str, Any] | None
    progress: dict[str, Any] | None
    metrics: dict[str, float]
    resources: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempt: int
    faults: int
    not_before: datetime | None
    retry_of: str | None
    worker_id: str | None
    lease_token: str | None
    lease_until: datetime | None
    event_seq: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What acceptance needs to know."""

    id: str
    type: str
    spec: dict[str, Any]
    priority: int = 0
    dataset_id: str | None = None
    model: str | None = None
    retry_of: str | None = None
    project: str = DEFAULT_PROJECT


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a job; every write carries the token."""

    job_id: str
    token: str


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    return Job(**{**values, "status": JobState(values["status"])})


def accept(connection: Connection, new: NewJob) -> Job:
    """Insert a queued job and the first row of its event log."""
    connection.execute(
        insert(jobs).values(
            id=new.id,
            project=new.project,
            type=new.type,
            status=JobState.QUEUED,
            priority=new.priority,
            dataset_id=new.dataset_id,
            model=new.model,
            spec=new.spec,
            metrics={},
            resources={},
            attempt=0,
            faults=0,
            retry_of=new.retry_of,
            event_seq=0,
            created_at=utc_now(),
        )
    )
    events.append(connection, new.id, [("state", {"status": JobState.QUEUED.value})])
    return get(connection, new.id, new.project)


def get(connection: Connection, job_id: str, project: str = DEFAULT_PROJECT) -> Job:
    """Return one job.

    Raises:
        JobNotFound: There is none of that id in the project.
    """
    row = connection.execute(
        select(jobs).where(jobs.c.id == job_id, jobs.c.project == project)
    ).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return _job(row)


def find_retry(connection: Connection, job_id: str) -> Job | None:
    """Return the job that retries `job_id`, if there is one."""
    row = connection.execute(select(jobs).where(jobs.c.retry_of == job_id)).one_or_none()
    return None if row is None else _job(row)


def page(
    connection: Connection,
    limit: int,
    after: str | None,
    *,
    status: str | None = None,
    job_type: str | None = None,
    project: str = DEFAULT_PROJECT,
) -> list[Job]:
    """Return up to `limit` jobs, newest first, behind the one of id `after`."""
    types = PUBLIC_TYPES if job_type is None else {job_type}
    statement = select(jobs).where(jobs.c.project == project, jobs.c.type.in_(types))
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if after is not None:
        statement = statement.where(jobs.c.number < get(connection, after, project).number)
    rows = connection.execute(statement.order_by(jobs.c.number.desc()).limit(limit))
    return [_job(row) for row in rows]


def queue_position(connection: Connection, job: Job) -> int | None:
    """Return how many queued jobs of the same kind go before this one; None if not queued."""
    if job.status is not JobState.QUEUED:
        return None
    ahead = or_(
        jobs.c.priority > job.priority,
        and_(jobs.c.priority == job.priority, jobs.c.number < job.number),
    )
    return connection.scalar(
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.status == JobState.QUEUED, _public(job.type), ahead)
    )


def unfinished_using(connection: Connection, dataset_id: str) -> list[str]:
    """Return the ids of jobs that still need a dataset (its own ingest not counted)."""
    statement = select(jobs.c.id).where(
        jobs.c.dataset_id == dataset_id, jobs.c.status.not_in(TERMINAL), jobs.c.type != "ingest"
    )
    return list(connection.scalars(statement))


def of_dataset(connection: Connection, dataset_id: str, job_type: str) -> Job | None:
    """Return the newest job of a type that works on a dataset, or None."""
    row = connection.execute(
        select(jobs)
        .where(jobs.c.dataset_id == dataset_id, jobs.c.type == job_type)
        .order_by(jobs.c.number.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _job(row)


def unfinished_of_type(connection: Connection, job_type: str) -> list[Job]:
    """Return the jobs of a type that have not ended, oldest first."""
    statement = select(jobs).where(jobs.c.type == job_type, jobs.c.status.not_in(TERMINAL))
    return [_job(row) for row in connection.execute(statement.order_by(jobs.c.number))]


def newest_of_type(connection: Connection, job_type: str, limit: int) -> list[Job]:
    """Return the newest jobs of a type, whatever their state."""
    statement = select(jobs).where(jobs.c.type == job_type).order_by(jobs.c.number.desc())
    return [_job(row) for row in connection.execute(statement.limit(limit))]


def has_claimable(connection: Connection, types: Collection[str]) -> bool:
    """Tell, without a lock, whether `claim` would find something."""
    return connection.scalar(_claimable(types)) is not None


def claim(
    connection: Connection, types: Collection[str], worker_id: str, token: str, lease: timedelta
) -> Job | None:
    """Take the most urgent claimable job of `types`: one statement, so that two cannot."""
    now = utc_now()
    row = connection.execute(
        update(jobs)
        .where(
            jobs.c.number == _claimable(types).with_for_update(skip_locked=True).scalar_subquery(),
            jobs.c.status == JobState.QUEUED,
        )
        .values(
            status=next_state("", JobState.QUEUED, JobEvent.CLAIM),
            attempt=jobs.c.attempt + 1,
            worker_id=worker_id,
            lease_token=token,
            lease_until=now + lease,
            started_at=func.coalesce(jobs.c.started_at, _as_text(now)),
            not_before=None,
            progress=None,
        )
        .returning(*jobs.c)
    ).one_or_none()
    if row is None:
        return None
    job = _job(row)
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
        .values(lease_until=utc_now() + length)
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


def transition(
    connection: Connection,
    job_id: str,
    event: JobEvent,
    *,
    lease: Lease | None = None,
    changes: dict[str, Any] | None = None,
    project: str = DEFAULT_PROJECT,
) -> Job:
    """Move a job along the table of transitions, with its event row, by compare-and-set.

    Args:
        connection: In a writing transaction.
        job_id: Which job.
        event: What happened.
        lease: Given by a worker; the job must still be held with its token.
        changes: Further columns to write, such as `result` or `error`.
        project: Whose job it is.

    Raises:
        JobNotFound: There is no such job.
        IllegalTransition: The job's state does not allow the event.
        LeaseLost: The lease is over.
    """
    job = get(connection, job_id, project)
    if lease is not None and job.lease_token != lease.token:
        raise LeaseLost(job_id)
    target = next_state(job_id, job.status, event)
    values: dict[str, Any] = {**(changes or {}), "status": target}
    if target not in HELD:
        values |= {"lease_token": None, "lease_until": None, "worker_id": None, "phase": None}
    if target in TERMINAL:
        values["finished_at"] = utc_now()
    done = connection.execute(
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.status == job.status,
            jobs.c.lease_token.is_not_distinct_from(job.lease_token),
        )
        .values(**values)
    )
    if done.rowcount != 1:
        raise IllegalTransition(job_id, job.status.value, event.value)
    data: dict[str, Any] = {"status": target.value, "attempt": job.attempt}
    if values.get("error"):
        data["error"] = values["error"]
    events.append(connection, job_id, [("state", data)])
    return get(connection, job_id, project)


def held_by_workers(connection: Connection, worker_ids: Collection[str]) -> list[Job]:
    """Return the jobs held by any of these workers."""
    rows = connection.execute(
        select(jobs).where(jobs.c.worker_id.in_(worker_ids), jobs.c.status.in_(HELD))
    )
    return [_job(row) for row in rows]


def with_lease_over(connection: Connection) -> list[Job]:
    """Return the held jobs whose lease has run out: their worker's host is gone."""
    rows = connection.execute(
        select(jobs).where(jobs.c.status.in_(HELD), jobs.c.lease_until < utc_now())
    )
    return [_job(row) for row in rows]


def waiting_for_dataset(connection: Connection, dataset_id: str) -> list[Job]:
    """Return the queued jobs that would train on a dataset."""
    rows = connection.execute(
        select(jobs).where(
            jobs.c.dataset_id == dataset_id,
            jobs.c.status.in_([JobState.QUEUED, JobState.PAUSED]),
            jobs.c.type != "ingest",
        )
    )
    return [_job(row) for row in rows]


def remove(connection: Connection, job_id: str, project: str = DEFAULT_PROJECT) -> None:
    """Delete an ended job and its events.

    Raises:
        JobNotFound: There is no such job.
        JobNotEnded: It has not ended.
    """
    job = get(connection, job_id, project)
    if job.status not in TERMINAL:
        raise JobNotEnded(job_id, job.status.value)
    events.remove_all(connection, job_id)
    connection.execute(delete(jobs).where(jobs.c.id == job_id))


def _held_by(lease: Lease) -> ColumnElement[bool]:
    return and_(
        jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token, jobs.c.status.in_(HELD)
    )


def _public(job_type: str) -> ColumnElement[bool]:
    return jobs.c.type.in_(PUBLIC_TYPES) if job_type in PUBLIC_TYPES else jobs.c.type == job_type


def _claimable(types: Collection[str]) -> Select[tuple[int]]:
    """Queued, due, and not waiting for a dataset that is still being checked."""
    dataset_pending = exists().where(
        datasets.c.id == jobs.c.dataset_id, datasets.c.status == "processing"
    )
    return (
        select(jobs.c.number)
        .where(
            jobs.c.status == JobState.QUEUED,
            jobs.c.type.in_(types),
            or_(jobs.c.not_before.is_(None), jobs.c.not_before <= utc_now()),
            or_(jobs.c.type == "ingest", ~dataset_pending),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.number)
        .limit(1)
    )


def _as_text(time: datetime) -> ColumnElement[datetime]:
    """Return a bound time of the column's own type, for use inside SQL functions."""
    return bindparam(None, time, type_=jobs.c.started_at.type)
