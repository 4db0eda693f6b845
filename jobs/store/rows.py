"""Every row of every table as plain values: how a backup holds them, on any database.

The tables are those that the database has, not those that this code knows: a copy of an older
service is written back as it was, and migrated afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from alembic.migration import MigrationContext
from sqlalchemy import JSON, Connection, DateTime, MetaData, Table, insert, select, text

_VERSION_TABLE = "alembic_version"
_BATCH_ROWS = 500


def revision_of(connection: Connection) -> str | None:
    """Return the version of the tables; None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def tables_of(connection: Connection) -> list[Table]:
    """Return every table that holds users' rows, those that others refer to first."""
    found = MetaData()
    found.reflect(connection)
    tables = [table for table in found.sorted_tables if table.name != _VERSION_TABLE]
    for column in itertools.chain.from_iterable(table.columns for table in tables):
        if isinstance(column.type, JSON):
            column.type = JSON(none_as_null=True)  # as `tables.JSON`: NULL is absent
    return tables


def read_rows(connection: Connection, table: Table) -> Iterator[list[Any]]:
    """Yield the rows of a table, in the order of its key, as JSON values."""
    ordered = select(table).order_by(*table.primary_key.columns)
    rows = connection.execute(ordered, execution_options={"yield_per": _BATCH_ROWS})
    for row in rows:
        yield [value.isoformat() if isinstance(value, datetime) else value for value in row]


def write_rows(
    connection: Connection, table: Table, columns: list[str], rows: Iterable[list[Any]]
) -> int:
    """Insert rows as `read_rows` gave them; return how many.

    Args:
        connection: In a writing transaction.
        table: Of `tables_of`.
        columns: Names of the values in each row.
        rows: The values.
    """
    times = {column.name for column in table.columns if isinstance(column.type, DateTime)}
    written = 0
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, _BATCH_ROWS)):
        values = [dict(zip(columns, row, strict=True)) for row in batch]
        for value in values:
            for name in times & value.keys():
                value[name] = value[name] and datetime.fromisoformat(value[name])
        connection.execute(insert(table), values)
        written += len(batch)
    return written


def go_on_counting(connection: Connection, table: Table) -> None:
    """Let numbers that the database gives go on behind the highest; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        names = {"table": table.name, "column": column.name}
        sequence = connection.scalar(text("SELECT pg_get_serial_sequence(:table, :column)"), names)
        highest = sequence and connection.scalar(select(column).order_by(column.desc()).limit(1))
        if highest is not None:
            connection.execute(
                text("SELECT setval(:sequence, :highest)"),
                {"sequence": sequence, "highest": highest},
            )


def is_empty(connection: Connection) -> bool:
    """Tell whether no table has a row."""
    return all(
        connection.execute(select(text("1")).select_from(table).limit(1)).first() is None
        for table in tables_of(connection)
    )
