"""Every earlier version of the tables, with rows in it, is brought to the newest."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    Table,
    insert,
    select,
    text,
)

from jobs.store import database as store
from jobs.store import models, rows, tables
from jobs.store.database import Database, utc_now

_SCRIPTS = ScriptDirectory(str(Path(store.__file__).parent / "migrations"))
REVISIONS = [script.revision for script in _SCRIPTS.walk_revisions()]
_ROWS = 20


def _value(column: Column[Any], number: int, chance: random.Random) -> object:
    """Return a value for a column: whatever its type allows, different in each row."""
    kind = column.type
    if column.foreign_keys:  # the only one: events of a job
        return f"id{number}"
    if isinstance(kind, JSON):
        return {"n": chance.randrange(9), "text": "ä\u2028"}
    if isinstance(kind, Boolean):
        return False
    if isinstance(kind, (Integer, BigInteger)):
        return number + 1
    if isinstance(kind, Float):
        return number / 3
    if column.name.endswith(("_at", "_until", "_before", "since", "until")):
        return datetime(2026, 1, 1, 0, 0, number, 7, tzinfo=UTC).isoformat(timespec="microseconds")
    return f"{column.name}{number}"[: getattr(kind, "length", None) or 40]


def _fill(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Write rows into every table that there is; return them as they are read back."""
    chance = random.Random(1)  # noqa: S311
    with database.write() as connection:
        for table in rows.tables_of(connection):
            for number in range(_ROWS):
                values = {c.name: _value(c, number, chance) for c in table.columns}
                connection.execute(insert(table).values(**values))
    return _read(database)


def _read(database: Database) -> dict[str, list[dict[str, Any]]]:
    with database.read() as connection:
        return {
            table.name: [dict(row._mapping) for row in _ordered(connection, table)]
            for table in rows.tables_of(connection)
        }


def _ordered(connection: Any, table: Table) -> Any:  # noqa: ANN401
    return connection.execute(select(table).order_by(*table.primary_key.columns))


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_row_and_no_value_is_lost_on_the_way_to_the_newest_version(
    database_url: str, revision: str
) -> None:
    database = Database(database_url)
    database.migrate(revision)
    before = _fill(database)
    assert before
    assert all(len(found) == _ROWS for found in before.values())
    database.migrate()
    assert database.is_migrated()
    after = _read(database)
    assert set(after) == set(tables.metadata.tables)
    for name, found in before.items():
        kept = [{key: row[key] for key in found[0]} for row in after[name]]
        assert sorted(map(repr, kept)) == sorted(map(repr, found)), name
    database.close()


def test_names_are_ordered_by_their_bytes_whatever_the_server_speaks(database: Database) -> None:
    """Servers set up for a language put `a-b` behind `ab`; this one is not, so columns tell."""
    names = ("a-b", "a.a", "a1", "a_c", "ab")
    with database.write() as connection:
        for name in reversed(names):
            row = {"last_version": 1, "deleted": False, "created_at": utc_now()}
            connection.execute(insert(tables.models).values(project="p", name=name, **row))
        assert [model.name for model in models.page(connection, 9, "a-", "p")] == list(names)
        if database.is_sqlite:
            return
        asked = (
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE collation_name = 'C' AND table_schema = 'public'"
        )
        found = {tuple(row) for row in connection.execute(text(asked))}
    assert found == {("models", "name"), ("model_aliases", "alias")}
