"""Statements about the event log of jobs: one row per transition, metric, phase, warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from jobs.store.database import utc_now
from jobs.store.tables import job_events, jobs


@dataclass(frozen=True)
class Event:
    """One row of a job's log; `seq` counts from 1 without gaps."""

    job_id: str
    seq: int
    kind: str
    data: dict[str, Any]
    at: datetime


def append(connection: Connection, job_id: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Append rows of `(kind, data)`, in the transaction of what they tell about."""
    if not rows:
        return
    last = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(event_seq=jobs.c.event_seq + len(rows))
        .returning(jobs.c.event_seq)
    ).scalar_one()
    first = last - len(rows) + 1
    now = utc_now()
    connection.execute(
        insert(job_events),
        [
            {"job_id": job_id, "seq": first + index, "kind": kind, "data": data, "at": now}
            for index, (kind, data) in enumerate(rows)
        ],
    )


def origin(connection: Connection, job_id: str) -> dict[str, str]:
    """Return where a job came from, as `jobs.trail.origin` said when it was accepted."""
    first = (job_events.c.job_id == job_id, job_events.c.seq == 1)
    data = connection.scalar(select(job_events.c.data).where(*first))
    return dict((data or {}).get("origin", {}))


def page(connection: Connection, job_id: str, after_seq: int, limit: int) -> list[Event]:
    """Return up to `limit` events behind `after_seq`, oldest first."""
    rows = connection.execute(
        select(job_events)
        .where(job_events.c.job_id == job_id, job_events.c.seq > after_seq)
        .order_by(job_events.c.seq)
        .limit(limit)
    )
    return [Event(**row._mapping) for row in rows]


def page_backwards(
    connection: Connection, job_id: str, before_seq: int | None, limit: int
) -> list[Event]:
    """Return up to `limit` events before `before_seq`, or the last ones; newest first."""
    statement = select(job_events).where(job_events.c.job_id == job_id)
    if before_seq is not None:
        statement = statement.where(job_events.c.seq < before_seq)
    rows = connection.execute(statement.order_by(job_events.c.seq.desc()).limit(limit))
    return [Event(**row._mapping) for row in rows]


def newest_of_kind(connection: Connection, job_id: str, kind: str, until: datetime) -> Event | None:
    """Return the last event of a kind that was written by `until`, or None."""
    row = connection.execute(
        select(job_events)
        .where(job_events.c.job_id == job_id, job_events.c.kind == kind, job_events.c.at <= until)
        .order_by(job_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Event(**row._mapping)


def remove_all(connection: Connection, job_id: str) -> None:
    """Delete the log of a job that is being deleted."""
    connection.execute(delete(job_events).where(job_events.c.job_id == job_id))
