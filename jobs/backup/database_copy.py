"""Copies the rows of a stopped service into another, empty database, of either kind.

Files stay where they are: rows point to them by hash. The copy is one transaction: it is there as a
whole or not at all, and may be tried again.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, select

from jobs.backup.errors import DatabaseInUse, NothingToBackUp, RestoreTargetUsed
from jobs.store import rows, workers
from jobs.store.database import Database


def copy_database(source: Database, target: Database, silent_after: timedelta) -> dict[str, int]:
    """Copy every row; return how many each table has.

    Args:
        source: Of a service that is stopped; it is only read.
        target: Empty, with or without tables.
        silent_after: A worker that was heard of since then is alive.

    Raises:
        NothingToBackUp: The source has no tables.
        DatabaseInUse: A worker is alive.
        RestoreTargetUsed: There are rows in the target.
    """
    with source.read(patient=True) as reading:
        revision = rows.revision_of(reading)
        if revision is None:
            raise NothingToBackUp()
        alive = workers.count_alive(reading, silent_after)
        if alive:
            raise DatabaseInUse(alive)
        with target.read() as connection:
            if not rows.is_empty(connection):
                raise RestoreTargetUsed("the database")
        target.migrate(revision)
        with target.write("database_copy") as writing:
            copied = _copy_rows(reading, writing)
    target.migrate()
    return copied


def _copy_rows(reading: Connection, writing: Connection) -> dict[str, int]:
    to = {table.name: table for table in rows.tables_of(writing)}
    copied = {}
    for table in rows.tables_of(reading):
        columns = [column.name for column in table.columns]
        found = rows.read_rows(reading, table)
        copied[table.name] = rows.write_rows(writing, to[table.name], columns, found)
        rows.go_on_counting(writing, to[table.name])
        there = (
            connection.scalar(select(func.count()).select_from(of))
            for connection, of in ((reading, table), (writing, to[table.name]))
        )
        assert set(there) == {copied[table.name]}, f"{table.name} was not copied whole"
    return copied
