"""Statements about API keys: of each only hashes are here."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from jobs.key_errors import ApiKeyEnded, ApiKeyNotFound
from jobs.keys import Limits, Scope
from jobs.store.database import utc_now
from jobs.store.tables import api_keys


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key; see `tables.api_keys` for the columns."""

    id: str
    project: str
    name: str
    scope: Scope
    secret_sha256: str
    previous_sha256: str | None
    previous_until: datetime | None
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def has_ended(self, now: datetime) -> bool:
        """Tell whether it was revoked or has expired."""
        expired = self.expires_at is not None and self.expires_at <= now
        return expired or self.revoked_at is not None


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """What is stored of a new one."""

    id: str
    project: str
    name: str
    scope: Scope
    secret_sha256: str
    limits: Limits
    expires_at: datetime | None = None


def _key(row: Row[Any]) -> ApiKey:
    values = dict(row._mapping)
    changed = {"scope": Scope(values["scope"]), "limits": Limits.of_json(values["limits"])}
    return ApiKey(**{**values, **changed})


def add(connection: Connection, new: NewApiKey) -> ApiKey:
    """Insert a key, in a writing transaction."""
    values = {**vars(new), "limits": new.limits.as_json(), "created_at": utc_now()}
    return _key(connection.execute(insert(api_keys).values(**values).returning(*api_keys.c)).one())


def exist(connection: Connection) -> bool:
    """Tell whether there ever was a key: revoked ones count, rows are never deleted."""
    return connection.execute(select(api_keys.c.id).limit(1)).one_or_none() is not None


def get(connection: Connection, key_id: str, project: str) -> ApiKey:
    """Return one key.

    Raises:
        ApiKeyNotFound: There is none of that id in the project.
    """
    row = connection.execute(
        select(api_keys).where(api_keys.c.id == key_id, api_keys.c.project == project)
    ).one_or_none()
    if row is None:
        raise ApiKeyNotFound(key_id)
    return _key(row)


def page(connection: Connection, limit: int, after: str | None, project: str) -> list[ApiKey]:
    """Return up to `limit` keys, newest first, behind the one of id `after`."""
    statement = select(api_keys).where(api_keys.c.project == project)
    if after is not None:
        statement = statement.where(api_keys.c.id < get(connection, after, project).id)
    rows = connection.execute(statement.order_by(api_keys.c.id.desc()).limit(limit))
    return [_key(row) for row in rows]


def of_every_project(connection: Connection) -> list[ApiKey]:
    """Return all keys, oldest first: for whoever works on the machine itself."""
    return [_key(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.id))]


def of_secret(connection: Connection, sha256: str, now: datetime) -> ApiKey | None:
    """Return the key that a secret opens now, or None.

    The database finds the row by the hash, and so might tell by its time how much of a hash is
    right. That helps nobody: it takes 2^256 tries to find a secret of a given hash.
    """
    rows = connection.execute(
        select(api_keys).where(
            or_(api_keys.c.secret_sha256 == sha256, api_keys.c.previous_sha256 == sha256)
        )
    )
    for key in map(_key, rows):
        if not key.has_ended(now) and _opens(key, sha256, now):
            return key
    return None


def _opens(key: ApiKey, sha256: str, now: datetime) -> bool:
    if hmac.compare_digest(key.secret_sha256, sha256):
        return True
    in_grace = key.previous_until is not None and now < key.previous_until
    return in_grace and hmac.compare_digest(key.previous_sha256 or "", sha256)


def rotate(
    connection: Connection, key_id: str, project: str, secret_sha256: str, grace: timedelta
) -> ApiKey:
    """Give a key a new secret; the one before opens it for a while longer, older ones do not.

    Raises:
        ApiKeyNotFound: There is none of that id in the project.
        ApiKeyEnded: It was revoked or has expired.
    """
    now, key = utc_now(), get(connection, key_id, project)
    if key.has_ended(now):
        raise ApiKeyEnded(key_id)
    connection.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(
            secret_sha256=secret_sha256,
            previous_sha256=key.secret_sha256,
            previous_until=now + grace,
        )
    )
    return get(connection, key_id, project)


def revoke(connection: Connection, key_id: str, project: str) -> ApiKey:
    """End a key for good; one that was revoked before stays as it is.

    Raises:
        ApiKeyNotFound: There is none of that id in the project.
    """
    if get(connection, key_id, project).revoked_at is None:
        connection.execute(
            update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=utc_now())
        )
    return get(connection, key_id, project)


def note_use(connection: Connection, key_id: str, at: datetime) -> None:
    """Write when a key was last used."""
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))
