"""How a transaction is begun, on SQLite and on PostgreSQL; migrations are run here too.

SQLite: WAL, `synchronous=FULL` (a committed row survives a power cut), `BEGIN IMMEDIATE` for
writers (a deferred transaction cannot wait when it upgrades), and the `pysqlite3` library, since
SQLite before 3.51.3 can corrupt a WAL file that several processes checkpoint.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url

try:
    from pysqlite3 import dbapi2 as sqlite_library
except ImportError:  # only built for Linux; elsewhere the journal mode below makes up for it
    import sqlite3 as sqlite_library

_BUSY_TIMEOUT_SECONDS = 15.0
_SAFE_WAL_VERSION = (3, 51, 3)


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return datetime.now(UTC)


class Database:
    """An engine and the two kinds of transaction.

    Args:
        url: `sqlite:///<absolute path>` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(url) if self.is_sqlite else _server_engine(url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; commits unless an error leaves."""
        with self._engine.connect() as connection:
            writing = connection.execution_options(graft_begin="IMMEDIATE")
            with writing.begin():
                yield writing

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one snapshot and writes nothing."""
        with self._engine.connect() as connection:
            reading = connection.execution_options(graft_begin="DEFERRED")
            with reading.begin():
                yield reading

    def migrate(self) -> None:
        """Bring the tables to the newest version; safe when several processes call it at once."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._migration_lock(), self._engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_migrated(self) -> bool:
        """Tell whether the tables are there (readiness; an old version counts as not ready)."""
        with self.read() as connection:
            return self._engine.dialect.has_table(connection, "workers")

    def close(self) -> None:
        """Close every connection of this process."""
        self._engine.dispose()

    @contextmanager
    def _migration_lock(self) -> Iterator[None]:
        if not self.is_sqlite:
            with self._engine.connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(4711)"))
                try:
                    yield
                finally:
                    connection.execute(text("SELECT pg_advisory_unlock(4711)"))
            return
        path = Path(f"{self.url.database}.migrate.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _server_engine(url: str) -> Engine:
    return create_engine(url, pool_pre_ping=True, pool_size=10)


def _sqlite_engine(url: str) -> Engine:
    library: ModuleType = sqlite_library
    engine = create_engine(url, module=library, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
        connection.isolation_level = None  # transactions are begun by `begin` below, not guessed
        safe = library.sqlite_version_info >= _SAFE_WAL_VERSION
        connection.execute(f"PRAGMA journal_mode={'WAL' if safe else 'TRUNCATE'}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("graft_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
