"""Statements about jobs: acceptance, claims, leases, transitions, progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from jobs import trail
from jobs.errors import IllegalTransition, JobNotEnded, JobNotFound, LeaseLost
from jobs.states import HELD, TERMINAL, JobEvent, JobState, next_state
from jobs.store import events
from jobs.store.database import utc_now
from jobs.store.tables import jobs

#: Jobs that people ask for; the others serve datasets and weights and are not listed.
PUBLIC_TYPES = frozenset({"fine_tune", "race", "evaluate", "batch_predict", "export"})

#: Those that wait for the same slots; exports have one of their own.
_TRAININGS = PUBLIC_TYPES - {"export"}


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
    checkpoint_attempt: int
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
    not_before: datetime | None = None
    project: str


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a job; every write carries the token."""

    job_id: str
    token: str


def job_of(row: Row[Any]) -> Job:
    """Return a row of the table as a record."""
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
            checkpoint_attempt=0,
            retry_of=new.retry_of,
            not_before=new.not_before,
            event_seq=0,
            created_at=utc_now(),
        )
    )
    data: dict[str, Any] = {"status": JobState.QUEUED.value}
    origin = trail.origin()
    events.append(connection, new.id, [("state", data | ({"origin": origin} if origin else {}))])
    return get(connection, new.id, new.project)


def get(connection: Connection, job_id: str, project: str) -> Job:
    """Return one job.

    Raises:
        JobNotFound: There is none of that id in the project.
    """
    row = connection.execute(
        select(jobs).where(jobs.c.id == job_id, jobs.c.project == project)
    ).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return job_of(row)


def find_retry(connection: Connection, job_id: str) -> Job | None:
    """Return the job that retries `job_id`, if there is one."""
    row = connection.execute(select(jobs).where(jobs.c.retry_of == job_id)).one_or_none()
    return None if row is None else job_of(row)


def page(
    connection: Connection,
    limit: int,
    after: str | None,
    *,
    status: str | None = None,
    job_type: str | None = None,
    project: str,
) -> list[Job]:
    """Return up to `limit` jobs, newest first, behind the one of id `after`."""
    types = PUBLIC_TYPES if job_type is None else {job_type}
    statement = select(jobs).where(jobs.c.project == project, jobs.c.type.in_(types))
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if after is not None:
        statement = statement.where(jobs.c.number < get(connection, after, project).number)
    rows = connection.execute(statement.order_by(jobs.c.number.desc()).limit(limit))
    return [job_of(row) for row in rows]


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
        .where(jobs.c.status == JobState.QUEUED, _of_same_queue(job.type), ahead)
    )


def count_by_status(connection: Connection) -> dict[JobState, int]:
    """Return how many jobs are in each state, those with none included; all projects together."""
    rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    found = {str(status): int(count) for status, count in rows}
    return {state: found.get(state.value, 0) for state in JobState}


def queued_since(connection: Connection) -> datetime | None:
    """Return when the job that is queued for longest was accepted; None if none is queued."""
    since: datetime | None = connection.scalar(
        select(func.min(jobs.c.created_at)).where(jobs.c.status == JobState.QUEUED)
    )
    return since


def count_unfinished(connection: Connection, project: str) -> int:
    """Return how many jobs that people asked for have not ended in a project."""
    chosen = (
        jobs.c.project == project,
        jobs.c.type.in_(PUBLIC_TYPES),
        jobs.c.status.not_in(TERMINAL),
    )
    return connection.scalar(select(func.count()).select_from(jobs).where(*chosen)) or 0


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
    return None if row is None else job_of(row)


def of_model(connection: Connection, model: str, job_type: str, project: str) -> list[Job]:
    """Return the jobs of a type that a model's name was given to, newest first."""
    chosen = (jobs.c.project == project, jobs.c.model == model, jobs.c.type == job_type)
    rows = connection.execute(select(jobs).where(*chosen).order_by(jobs.c.number.desc()))
    return [job_of(row) for row in rows]


def unfinished_of_type(connection: Connection, job_type: str) -> list[Job]:
    """Return the jobs of a type that have not ended, oldest first."""
    statement = select(jobs).where(jobs.c.type == job_type, jobs.c.status.not_in(TERMINAL))
    return [job_of(row) for row in connection.execute(statement.order_by(jobs.c.number))]


def newest_of_type(connection: Connection, job_type: str, limit: int) -> list[Job]:
    """Return the newest jobs of a type, whatever their state."""
    statement = select(jobs).where(jobs.c.type == job_type).order_by(jobs.c.number.desc())
    return [job_of(row) for row in connection.execute(statement.limit(limit))]


def succeeded(connection: Connection, job_type: str, limit: int) -> list[Job]:
    """Return the newest jobs of a type that succeeded."""
    done = (jobs.c.type == job_type, jobs.c.status == JobState.SUCCEEDED)
    rows = connection.execute(select(jobs).where(*done).order_by(jobs.c.number.desc()).limit(limit))
    return [job_of(row) for row in rows]


def transition(
    connection: Connection,
    job_id: str,
    event: JobEvent,
    *,
    lease: Lease | None = None,
    changes: dict[str, Any] | None = None,
    project: str,
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


def waiting_for_dataset(connection: Connection, dataset_id: str) -> list[Job]:
    """Return the queued jobs that would train on a dataset."""
    rows = connection.execute(
        select(jobs).where(
            jobs.c.dataset_id == dataset_id,
            jobs.c.status.in_([JobState.QUEUED, JobState.PAUSED]),
            jobs.c.type != "ingest",
        )
    )
    return [job_of(row) for row in rows]


def remove(connection: Connection, job_id: str, project: str) -> None:
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


def _of_same_queue(job_type: str) -> ColumnElement[bool]:
    return jobs.c.type.in_(_TRAININGS) if job_type in _TRAININGS else jobs.c.type == job_type
