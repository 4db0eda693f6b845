"""Where the database of a test is: a SQLite file, or a database of a real PostgreSQL server.

`GRAFT_TEST_DATABASE` chooses, for the whole run; see `tests/conftest.py`.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.postgresql import PostgresqlServer

KINDS = ("sqlite", "postgresql")
KIND = os.environ.get("GRAFT_TEST_DATABASE") or "sqlite"
assert KIND in KINDS, f"GRAFT_TEST_DATABASE={KIND}: sqlite or postgresql"


def database_url(folder: Path, kind: str = KIND) -> str:
    """Return the SQLAlchemy URL of the database that belongs to a folder.

    The same folder has the same database for as long as the tests run, so that a service may be
    started again on it; another folder has another one, empty at first. A test that goes from one
    kind to the other says which it means; all others leave that to the run.
    """
    if kind == "sqlite":
        return f"sqlite:///{folder / 'graft.db'}"
    return postgresql().create(f"t_{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}")


@cache
def postgresql() -> PostgresqlServer:
    """Return the server of this process of pytest, started when it is first asked for."""
    from tests.postgresql import PostgresqlServer  # noqa: PLC0415 - not on a bare GPU image

    server = PostgresqlServer()
    atexit.register(server.close)
    return server
