"""Statements about idempotency keys: written in the transaction of what they guard."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Connection, delete, insert, select

from jobs.errors import IdempotencyMismatch
from jobs.store.database import utc_now
from jobs.store.tables import idempotency_keys


def once(
    connection: Connection,
    key: str | None,
    fingerprint: str,
    make: Callable[[], str],
    project: str,
) -> str:
    """Return what an earlier request with this key made, else make it and remember.

    Args:
        connection: In the writing transaction in which `make` inserts its rows.
        key: The request's key; None means that it has none and is not repeated.
        fingerprint: Hash of method, path and body.
        make: Inserts and returns the id of what it made.
        project: Whose key it is: others may use the same one.

    Raises:
        IdempotencyMismatch: The key was used for a request with another fingerprint.
    """
    known = None if key is None else find(connection, key, fingerprint, project)
    if known is not None:
        return known
    made = make()
    if key is not None:
        remember(connection, key, fingerprint, made, project)
    return made


def find(connection: Connection, key: str, fingerprint: str, project: str) -> str | None:
    """Return the id that an earlier request with this key made, or None.

    Raises:
        IdempotencyMismatch: The key was used for a request with another fingerprint.
    """
    row = connection.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.project == project, idempotency_keys.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch(key)
    return str(row.resource)


def forget(connection: Connection, older_than: timedelta) -> int:
    """Forget the keys of requests longer ago than that; return how many there were."""
    old = idempotency_keys.c.created_at < utc_now() - older_than
    return connection.execute(delete(idempotency_keys).where(old)).rowcount


def remember(
    connection: Connection,
    key: str,
    fingerprint: str,
    resource: str,
    project: str,
) -> None:
    """Record what the request with this key made."""
    connection.execute(
        insert(idempotency_keys).values(
            project=project,
            key=key,
            fingerprint=fingerprint,
            resource=resource,
            created_at=utc_now(),
        )
    )
