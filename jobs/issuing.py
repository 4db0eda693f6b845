"""Making API keys and renewing them: what is shown once, and what is stored of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import uuid_utils.compat as uuids
from sqlalchemy import Connection

from jobs.keys import Limits, Scope, new_key, sha256_of_key
from jobs.store import keys
from jobs.store.database import utc_now
from jobs.store.keys import ApiKey, NewApiKey


@dataclass(frozen=True)
class Wish:
    """What a new key is to be.

    Args:
        project: Whose key; all that is made with it belongs there.
        name: For people.
        scope: What it may do.
        limits: How much of it.
        lifetime: After which it opens nothing; None: until it is revoked.
    """

    project: str
    name: str
    scope: Scope
    limits: Limits
    lifetime: timedelta | None


@dataclass(frozen=True)
class Issued:
    """A stored key and its secret, which is nowhere else."""

    key: ApiKey
    secret: str


def issue(connection: Connection, wish: Wish) -> Issued:
    """Make a key, in a writing transaction."""
    secret = new_key()
    new = NewApiKey(
        id=f"key_{uuids.uuid7().hex}",
        project=wish.project,
        name=wish.name,
        scope=wish.scope,
        secret_sha256=sha256_of_key(secret),
        limits=wish.limits,
        expires_at=None if wish.lifetime is None else utc_now() + wish.lifetime,
    )
    return Issued(keys.add(connection, new), secret)


def renew(connection: Connection, key_id: str, project: str, grace: timedelta) -> Issued:
    """Give a key a new secret, in a writing transaction; the old one opens it for `grace` more.

    Raises:
        ApiKeyNotFound: There is none of that id in the project.
        ApiKeyEnded: It was revoked or has expired.
    """
    secret = new_key()
    return Issued(keys.rotate(connection, key_id, project, sha256_of_key(secret), grace), secret)
