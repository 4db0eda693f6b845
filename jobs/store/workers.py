"""Statements about the workers that are alive."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, select, update

from jobs.store.database import utc_now
from jobs.store.tables import workers


def register(connection: Connection, worker_id: str, host: str, pid: int, device: str) -> None:
    """Insert a worker that has just started."""
    connection.execute(
        insert(workers).values(
            id=worker_id, host=host, pid=pid, device=device, heartbeat_at=utc_now()
        )
    )


def beat(connection: Connection, worker_id: str) -> bool:
    """Say that a worker is alive; False if it was taken for dead and its row removed."""
    done = connection.execute(
        update(workers).where(workers.c.id == worker_id).values(heartbeat_at=utc_now())
    )
    return done.rowcount == 1


def remove(connection: Connection, worker_ids: Collection[str]) -> None:
    """Delete workers that have ended."""
    connection.execute(delete(workers).where(workers.c.id.in_(worker_ids)))


def remove_all(connection: Connection) -> None:
    """Delete every worker: the rows were copied from another service."""
    connection.execute(delete(workers))


def on_host(connection: Connection, host: str) -> list[str]:
    """Return the ids of the workers of one host."""
    return list(connection.scalars(select(workers.c.id).where(workers.c.host == host)))


def silent_since(connection: Connection, before: datetime) -> list[str]:
    """Return the ids of workers whose last heartbeat is older than `before`."""
    return list(connection.scalars(select(workers.c.id).where(workers.c.heartbeat_at < before)))


def count_alive(connection: Connection, within: timedelta, *, host: str | None = None) -> int:
    """Return how many workers have been heard of lately, of one host or of all."""
    statement = select(func.count()).where(workers.c.heartbeat_at >= utc_now() - within)
    if host is not None:
        statement = statement.where(workers.c.host == host)
    return connection.scalar(statement) or 0
