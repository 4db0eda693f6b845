"""Statements about idempotency keys: written in the transaction of what they guard."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from jobs.errors import IdempotencyMismatch
from jobs.store.database import utc_now
from jobs.store.tables import DEFAULT_PROJECT, idempotency_keys


def find(
    connection: Connection, key: str, fingerprint: str, project: str = DEFAULT_PROJECT
) -> str | None:
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


def remember(
    connection: Connection,
    key: str,
    fingerprint: str,
    resource: str,
    project: str = DEFAULT_PROJECT,
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
