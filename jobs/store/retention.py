"""Statements about what may go with time: run folders and figures of jobs that ended long ago."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select

from jobs.states import HELD, TERMINAL
from jobs.store.jobs import Job, job_of
from jobs.store.tables import job_events, jobs


def job_ids(connection: Connection) -> set[str]:
    """Return the ids of all jobs."""
    return set(connection.scalars(select(jobs.c.id)))


def ended_job_ids(connection: Connection, before: datetime | None = None) -> set[str]:
    """Return the ids of the jobs that have ended; with a time, of those that did before it."""
    statement = select(jobs.c.id).where(jobs.c.status.in_(TERMINAL))
    if before is not None:
        statement = statement.where(jobs.c.finished_at < before)
    return set(connection.scalars(statement))


def held_jobs(connection: Connection) -> list[Job]:
    """Return the jobs that a worker holds, or held when these rows were copied."""
    rows = connection.execute(select(jobs).where(jobs.c.status.in_(HELD)))
    return [job_of(row) for row in rows]


def oldest_open_start(connection: Connection) -> datetime | None:
    """Return when the first of the jobs began that have begun and not ended; None without any."""
    first = func.min(jobs.c.started_at, type_=jobs.c.started_at.type)
    found: datetime | None = connection.scalar(select(first).where(jobs.c.status.not_in(TERMINAL)))
    return found


def count_figures(connection: Connection, before: datetime) -> int:
    """Return how many figures by step are in the logs of jobs that ended before a time."""
    found = select(func.count()).select_from(job_events).where(_old_figures(before))
    return connection.scalar(found) or 0


def forget_figures(connection: Connection, before: datetime) -> int:
    """Remove the figures by step of jobs that ended before a time; return how many there were.

    What happened to a job stays in its log: only rows of kind `metrics` go.
    """
    return connection.execute(delete(job_events).where(_old_figures(before))).rowcount


def _old_figures(before: datetime) -> ColumnElement[bool]:
    ended = exists().where(
        jobs.c.id == job_events.c.job_id,
        jobs.c.status.in_(TERMINAL),
        jobs.c.finished_at < before,
    )
    return and_(job_events.c.kind == "metrics", ended)
