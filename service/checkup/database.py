"""Checks of the database: reachable, durable, of this version, true to files and clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from jobs import pointers
from jobs.store import rows, workers
from jobs.store.database import Database, known_revisions, sqlite_facts, utc_now
from jobs.store.tables import datasets, jobs, model_versions
from models_cache.blobs import BlobStore
from service.checkup.finding import Finding, fine, problem, warning
from service.settings import Settings

_OLDEST_SERVER = 14_00_00
_CLOCKS_DIFFER_SECONDS = 5.0
#: No machine that runs this was set right before.
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(minutes=5)


def check_database(settings: Settings) -> Iterator[Finding]:
    """Look at the database and at what its rows say."""
    if not settings.database_url and not (settings.data_dir / "graft.db").is_file():
        yield fine("database", "there is none yet; the first start makes it")
        yield from _clock(None)
        return
    database = Database(settings.database_address)
    try:
        yield from _server(database)
        with database.read() as connection:
            revision = rows.revision_of(connection)
        is_newest = database.is_migrated()
        yield _tables(revision, is_newest=is_newest)
        if is_newest:
            with database.read(patient=True) as connection:
                yield from _clock(_newest_row(connection))
                yield _files(connection, BlobStore(settings.data_dir / "blobs"))
                alive = workers.count_alive(connection, timedelta(seconds=settings.lease_seconds))
            yield _workers(alive)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip()
        address = database.url.render_as_string(hide_password=True)
        yield problem("database", f"{address}: {reason}", "start it, or mend GRAFT_DATABASE_URL")
    finally:
        database.close()


def _server(database: Database) -> Iterator[Finding]:
    if database.is_sqlite:
        version, is_safe = sqlite_facts()
        if is_safe:
            yield fine("database", f"SQLite {version}, which is safe with a write-ahead log")
        else:
            yield warning(
                "database",
                f"SQLite {version} may damage a write-ahead log, so that it is not used",
                "pip install pysqlite3, for speed",
            )
        with database.read() as connection:
            found = connection.scalar(text("PRAGMA quick_check(1)"))
        whole = found == "ok"
        yield (
            fine("database-pages", "whole")
            if whole
            else problem(
                "database-pages", f"damaged: {found}", "check the disk, then restore a backup"
            )
        )
        return
    with database.read() as connection:
        number = int(connection.scalar(text("SHOW server_version_num")))
        version = connection.scalar(text("SHOW server_version"))
        off = [
            name
            for name in ("fsync", "synchronous_commit", "full_page_writes")
            if connection.scalar(text(f"SHOW {name}")) == "off"
        ]
        theirs = connection.scalar(text("SELECT clock_timestamp()"))
    if number < _OLDEST_SERVER:
        yield warning("database", f"PostgreSQL {version}", "use a version that is maintained")
    else:
        yield fine("database", f"PostgreSQL {version}")
    if off:
        yield problem(
            "database-settings",
            f"{', '.join(off)} is off: what was acknowledged may be lost",
            "turn it on in postgresql.conf",
        )
    apart_seconds = abs((theirs - utc_now()).total_seconds())
    if apart_seconds > _CLOCKS_DIFFER_SECONDS:
        yield problem(
            "database-clock",
            f"its clock differs by {apart_seconds:.0f} s",
            "run NTP on both machines: leases are compared",
        )
    else:
        yield fine("database-clock", f"differs by {apart_seconds:.1f} s")


def _tables(revision: str | None, *, is_newest: bool) -> Finding:
    if is_newest:
        return fine("tables", f"version {revision}")
    if revision is None:
        return fine("tables", "there are none yet; the first start makes them")
    if revision in known_revisions():
        return warning(
            "tables", f"version {revision} is older than this Graft",
            "the next start migrates them: `graft backup --to FOLDER` first",
        )  # fmt: skip
    return problem(
        "tables", f"version {revision} is of a later Graft", "install that one, or restore a backup"
    )


def _newest_row(connection: Connection) -> datetime | None:
    newest = (
        connection.scalar(select(func.max(table.c.created_at, type_=table.c.created_at.type)))
        for table in (datasets, jobs, model_versions)
    )
    return max((time for time in newest if time is not None), default=None)


def _clock(newest: datetime | None) -> Iterator[Finding]:
    now = utc_now()
    advice = "set the clock; run NTP"
    if now < _EARLIEST:
        yield problem("clock", f"it says {now:%Y-%m-%d}", advice)
    elif newest is not None and newest > now + _AHEAD:
        yield problem("clock", f"it says {now:%F %T}, and a row is of {newest:%F %T}", advice)
    else:
        yield fine("clock", f"{now:%F %T} UTC")


def _files(connection: Connection, blobs: BlobStore) -> Finding:
    missing = pointers.missing_files(connection, blobs, pointers.present_blobs(blobs))
    if not missing:
        return fine("files", "every file that rows point to is there")
    first = next(iter(missing))
    return problem(
        "files",
        f"{len(missing)} rows lack files, the first is {first}",
        "restore a backup, or delete what these rows are of",
    )


def _workers(alive: int) -> Finding:
    return fine("workers", f"{alive} alive" if alive else "none is running")
