"""Whether anybody has committed anything: asked often, so it must cost little.

SQLite tells it of a file in microseconds (`PRAGMA data_version`). PostgreSQL tells which
transactions are visible (`pg_current_snapshot()`): one question and one answer, 20 microseconds on
a socket of the same machine, where reading a version takes 800. Notifications (`LISTEN`) would be
cheaper still, but they come behind the commit that others may have seen already.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

_SNAPSHOT = "SELECT pg_current_snapshot()::text"

#: Equal for as long as nobody commits; None where that cannot be told at the moment.
Commit = int | str | None


class LastCommit(Protocol):
    """Tells commits apart."""

    def find(self) -> Commit:
        """Return what is another one after any commit, of whatever connection and process."""

    def close(self) -> None:
        """Close its connection; the next question opens another."""


class SqliteLastCommit:
    """Of a file; waits for nobody.

    Args:
        library: Which `sqlite3` reads it.
        path: The file.
    """

    def __init__(self, library: ModuleType, path: str) -> None:
        self._library = library
        self._path = path
        self._connection: Any = None
        self._lock = threading.Lock()

    def find(self) -> Commit:
        """Return a number; None while the file is locked as a whole."""
        with self._lock:
            try:
                if self._connection is None:
                    # One that never commits itself: SQLite leaves out a connection's own commits
                    self._connection = self._library.connect(
                        self._path, timeout=0, check_same_thread=False, isolation_level=None
                    )
                (number,) = self._connection.execute("PRAGMA data_version").fetchone()
            except self._library.OperationalError:
                return None
        return int(number)

    def close(self) -> None:
        """Close its connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class ServerLastCommit:
    """Of a PostgreSQL server, all its databases together; waits for the server's answer.

    Snapshots are totally ordered here, since numbers of transactions are never used again: one that
    is equal to an earlier one says that nothing was committed between them.

    Args:
        engine: Makes connections; this takes one for itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._lock = threading.Lock()

    def find(self) -> Commit:
        """Return a snapshot's text; None while the server is away."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                (snapshot,) = self._connection.execute(_SNAPSHOT).fetchone()
            except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error):
                self._drop()
                return None
        return str(snapshot)

    def close(self) -> None:
        """Close its connection."""
        with self._lock:
            self._drop()

    def _connect(self) -> Any:  # noqa: ANN401 - the driver's
        proxied = self._engine.raw_connection()
        connection: Any = proxied.driver_connection
        proxied.detach()  # from the pool
        connection.rollback()
        connection.autocommit = True
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
