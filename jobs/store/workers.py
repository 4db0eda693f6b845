"""Statements about the workers that are alive."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    not_,
    select,
    update,
)

from jobs.store.lease_clock import lease_now
from jobs.store.tables import workers


def register(connection: Connection, worker_id: str, host: str, pid: int, device: str) -> None:
    """Insert a worker that has just started."""
    connection.execute(
        insert(workers).values(
            id=worker_id, host=host, pid=pid, device=device, heartbeat_at=lease_now(connection)
        )
    )


def beat(connection: Connection, worker_id: str) -> bool:
    """Say that a worker is alive; False if it was taken for dead and its row removed."""
    done = connection.execute(
        update(workers).where(workers.c.id == worker_id).values(heartbeat_at=lease_now(connection))
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


def silent_for(connection: Connection, length: timedelta) -> list[str]:
    """Return the ids of workers that have not been heard of for so long."""
    return list(connection.scalars(select(workers.c.id).where(not_(_heard(connection, length)))))


def count_alive(connection: Connection, within: timedelta, *, host: str | None = None) -> int:
    """Return how many workers have been heard of lately, of one host or of all."""
    statement = select(func.count()).select_from(workers).where(_heard(connection, within))
    if host is not None:
        statement = statement.where(workers.c.host == host)
    return connection.scalar(statement) or 0


def _heard(connection: Connection, within: timedelta) -> ColumnElement[bool]:
    """A heartbeat that lies ahead is of another boot of the host (see `lease_clock`)."""
    now = lease_now(connection)
    return and_(workers.c.heartbeat_at >= now - within, workers.c.heartbeat_at <= now + within)
