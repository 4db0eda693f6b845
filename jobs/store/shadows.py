"""Statements about shadows: how often a candidate agreed with the version that answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, case, insert, select, update

from jobs.store.database import utc_now
from jobs.store.tables import shadow_comparisons


class Pair(NamedTuple):
    """Which two versions of a model were compared: the one that answered, and the candidate."""

    project: str
    name: str
    version: int
    shadow: int


@dataclass(frozen=True)
class Comparisons:
    """What came of comparing the answers to some images.

    Args:
        compared: Images.
        agreed: Of them, those with the same answer.
        failed: Images that the candidate gave no answer to.
        sum_difference: Of the scores of the label that was answered, without their signs.
        most_difference: The largest one.
    """

    compared: int = 0
    agreed: int = 0
    failed: int = 0
    sum_difference: float = 0.0
    most_difference: float = 0.0

    def __add__(self, other: Comparisons) -> Comparisons:
        return Comparisons(
            self.compared + other.compared,
            self.agreed + other.agreed,
            self.failed + other.failed,
            self.sum_difference + other.sum_difference,
            max(self.most_difference, other.most_difference),
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All comparisons of a pair so far; see `tables.shadow_comparisons` for the columns."""

    project: str
    name: str
    version: int
    shadow: int
    compared: int
    agreed: int
    failed: int
    sum_difference: float
    most_difference: float
    since: datetime
    until: datetime


def _compared(row: Row[Any]) -> Compared:
    return Compared(**row._mapping)


def add(connection: Connection, found: Mapping[Pair, Comparisons]) -> None:
    """Add comparisons to what is known of their pairs, in a writing transaction."""
    now, table = utc_now(), shadow_comparisons.c
    for pair, more in found.items():
        key = (
            table.project == pair.project,
            table.name == pair.name,
            table.version == pair.version,
            table.shadow == pair.shadow,
        )
        larger = case(
            (table.most_difference < more.most_difference, more.most_difference),
            else_=table.most_difference,
        )
        known = connection.execute(
            update(shadow_comparisons)
            .where(*key)
            .values(
                compared=table.compared + more.compared,
                agreed=table.agreed + more.agreed,
                failed=table.failed + more.failed,
                sum_difference=table.sum_difference + more.sum_difference,
                most_difference=larger,
                until=now,
            )
        )
        if not known.rowcount:
            new = {**pair._asdict(), **vars(more), "since": now, "until": now}
            connection.execute(insert(shadow_comparisons).values(**new))


def of_model(connection: Connection, name: str, project: str) -> list[Compared]:
    """Return what is known of every pair of a model's versions, the newest pair first."""
    rows = connection.execute(
        select(shadow_comparisons)
        .where(shadow_comparisons.c.project == project, shadow_comparisons.c.name == name)
        .order_by(shadow_comparisons.c.shadow.desc(), shadow_comparisons.c.version.desc())
    )
    return [_compared(row) for row in rows]
