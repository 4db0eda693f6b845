"""How a transaction is begun, on SQLite and on PostgreSQL; migrations are run here too.

PostgreSQL: every wait ends. A statement, a lock and a transaction in which nothing happens have
`patience_seconds`; so a process that was stopped inside a transaction does not stop the others.

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
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from jobs.store.ballast import Ballast
from jobs.store.last_commit import Commit, LastCommit, ServerLastCommit, SqliteLastCommit
from models_cache import faults

try:
    from pysqlite3 import dbapi2 as sqlite_library
except ImportError:  # only built for Linux; elsewhere the journal mode below makes up for it
    import sqlite3 as sqlite_library

#: Raised while the database is away, stopping, starting, locked, full, or read-only (a standby).
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)

_PATIENCE_SECONDS = 15.0
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_DISK_FULL, _SQLITE_FULL = "53100", 13  # codes of PostgreSQL and of SQLite
_POOL_SIZE = 40  # as many as the web framework has threads: none waits for a connection
_MIGRATION_LOCK, _WRITER_LOCK = 4711, 4712  # advisory locks, on PostgreSQL
_SAFE_WAL_VERSION = (3, 51, 3)
_MIGRATIONS = Path(__file__).parent / "migrations"


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return datetime.now(UTC)


def known_revisions() -> set[str]:
    """Return every version of the tables that this code can bring to the newest."""
    return {script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()}


def sqlite_facts() -> tuple[str, bool]:
    """Return the version of the SQLite library, and whether it is safe with a WAL file."""
    version: tuple[int, ...] = sqlite_library.sqlite_version_info
    return sqlite_library.sqlite_version, version >= _SAFE_WAL_VERSION


class Database:
    """An engine and the two kinds of transaction.

    Args:
        url: `sqlite:///<absolute path>` or `postgresql+psycopg://...`.
        ballast: Given up when the disk is full.
        patience_seconds: How long a statement waits for others.
    """

    def __init__(
        self,
        url: str,
        ballast: Ballast | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._ballast = ballast
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        engine = _sqlite_engine if self.is_sqlite else _server_engine
        self._engine = engine(self.url, patience_seconds)
        self._last_commit: LastCommit = (
            SqliteLastCommit(sqlite_library, self.url.database or "")
            if self.is_sqlite
            else ServerLastCommit(self._engine)
        )

    @contextmanager
    def write(self, point: str = "write") -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; commits unless an error leaves.

        Writers take turns on both databases (`BEGIN IMMEDIATE`, an advisory lock): what one reads
        is still true when it writes. They are short, and no I/O happens inside.

        Args:
            point: Prefix of the fault points `<point>.before_tx|in_tx|after_commit`.
        """
        faults.reach(f"{point}.before_tx")
        if self._ballast is not None:
            self._ballast.give_up_if_full()
        with self._engine.connect() as connection:
            writing = connection.execution_options(graft_begin="IMMEDIATE")
            if not self.is_sqlite:
                writing = writing.execution_options(isolation_level="READ COMMITTED")
            with writing.begin():
                if not self.is_sqlite:
                    writing.execute(text(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})"))
                yield writing
                faults.reach(f"{point}.in_tx")
        faults.reach(f"{point}.after_commit")

    @contextmanager
    def read(self, *, patient: bool = False) -> Iterator[Connection]:
        """Yield a connection that sees one snapshot and writes nothing.

        Args:
            patient: Files are looked at between its statements; it may take as long as it takes.
        """
        with self._engine.connect() as connection:
            reading = connection.execution_options(graft_begin="DEFERRED")
            with reading.begin():
                if patient and not self.is_sqlite:
                    for name in _TIMEOUTS:
                        reading.execute(text(f"SET LOCAL {name} = 0"))
                yield reading

    def last_commit(self) -> Commit:
        """Return what is another one after any commit; None where that cannot be told now.

        Commits of any connection and process count. Takes microseconds and waits for nobody on
        SQLite; on PostgreSQL it waits for an answer of the server.
        """
        return self._last_commit.find()

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to the newest version; safe when several processes call it at once.

        Args:
            revision: An older version to stop at: that of the rows which a restore writes.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._migration_lock(), self._engine.connect() as connection:
            if not self.is_sqlite:
                _be_patient(connection)
            config.attributes["connection"] = connection
            faults.reach("migration.before")
            command.upgrade(config, revision)
            faults.reach("migration.after")

    def restore_ballast(self) -> None:
        """Make what was given up on a full disk again, if there is room by now."""
        if self._ballast is not None:
            self._ballast.make()

    def is_migrated(self) -> bool:
        """Tell whether the tables are of the version this code needs."""
        with self.read() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        return current == ScriptDirectory(str(_MIGRATIONS)).get_current_head()

    def close(self) -> None:
        """Close every connection of this process."""
        self._engine.dispose()
        self._last_commit.close()

    @contextmanager
    def _migration_lock(self) -> Iterator[None]:
        if not self.is_sqlite:
            with self._engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                _be_patient(connection)
                connection.execute(text(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})"))
                yield
            return  # the connection is closed, and the lock with it
        path = Path(f"{self.url.database}.migrate.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_full(error: Exception) -> bool:
    """Tell whether a statement failed since the disk of the database is full."""
    original = getattr(error, "orig", None)
    sqlite_code = getattr(original, "sqlite_errorcode", None) or 0
    return getattr(original, "sqlstate", None) == _DISK_FULL or sqlite_code & 0xFF == _SQLITE_FULL


def _be_patient(connection: Connection) -> None:
    """Let a connection wait for as long as it takes; it goes back to no pool."""
    connection.detach()
    for name in _TIMEOUTS:
        connection.execute(text(f"SET {name} = 0"))
    connection.commit()


def _server_engine(url: URL, patience_seconds: float) -> Engine:
    """Return an engine that never hangs: a lease must not run out behind a dead connection."""
    patience = int(patience_seconds * 1000)  # milliseconds, as the next ones
    options = {
        "application_name": "graft",
        "connect_timeout": 5,  # seconds
        "tcp_user_timeout": 10_000,  # milliseconds
        "options": " ".join(f"-c {name}={patience}" for name in _TIMEOUTS),
    }
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        isolation_level="REPEATABLE READ",
        hide_parameters=True,  # of what users sent, nothing is for the log
        connect_args=options,
    )


def _sqlite_engine(url: URL, patience_seconds: float) -> Engine:
    library: ModuleType = sqlite_library
    engine = create_engine(
        url,
        module=library,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"timeout": patience_seconds},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
        connection.isolation_level = None  # transactions are begun by `begin` below, not guessed
        _, safe = sqlite_facts()
        connection.execute(f"PRAGMA journal_mode={'WAL' if safe else 'TRUNCATE'}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("graft_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
