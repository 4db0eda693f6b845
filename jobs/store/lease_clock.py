"""The clock that leases and signs of life are measured with: one that nobody sets.

On PostgreSQL it is the server's, so that workers on hosts whose clocks differ agree. SQLite is of
one host, and there it is the time since the host started, sleep included, counted from 1970: a
wall clock that is set forward would end every lease at once, and one set back none for hours.
Times of another boot lie behind or far ahead, and mean that whoever wrote them is gone.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, func, or_, select

#: Two looks at the clock around a commit differ by less.
_SLACK = timedelta(seconds=60)


def lease_now(connection: Connection) -> datetime:
    """Return the time, aware and in UTC."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now
    return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME), UTC)


def over(
    connection: Connection, until: Column[datetime], longest: timedelta
) -> ColumnElement[bool]:
    """Return the condition that a lease has ended: its end lies behind, or too far ahead.

    Args:
        connection: Whose clock counts.
        until: The column with the ends.
        longest: How long a lease is.
    """
    now = lease_now(connection)
    return or_(until < now, until > now + longest + _SLACK)
