"""Statements about feedback: images with the labels that people say are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from jobs.feedback_errors import FeedbackNotFound, FeedbackUsed
from jobs.store.database import utc_now
from jobs.store.tables import datasets, feedback


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """One image and its right labels; see `tables.feedback` for the columns."""

    id: str
    project: str
    model: str
    version: int
    image_sha256: str
    image_bytes: int
    labels: list[str]
    predicted: dict[str, Any]
    dataset_id: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class NewFeedback:
    """What is stored of it."""

    id: str
    model: str
    version: int
    image_sha256: str
    image_bytes: int
    labels: list[str]
    predicted: dict[str, Any]
    project: str


def _feedback(row: Row[Any]) -> Feedback:
    return Feedback(**row._mapping)


def add(connection: Connection, items: Sequence[NewFeedback]) -> None:
    """Insert images with their labels, in a writing transaction."""
    now = utc_now()
    connection.execute(insert(feedback), [{**vars(item), "created_at": now} for item in items])


def page(
    connection: Connection,
    model: str,
    limit: int,
    after: str | None,
    *,
    pending_only: bool = False,
    project: str,
) -> list[Feedback]:
    """Return up to `limit` of a model's, oldest first, behind the one of id `after`."""
    statement = select(feedback).where(feedback.c.project == project, feedback.c.model == model)
    if pending_only:
        statement = statement.where(_pending())
    if after is not None:
        statement = statement.where(feedback.c.id > get(connection, after, project).id)
    rows = connection.execute(statement.order_by(feedback.c.id).limit(limit))
    return [_feedback(row) for row in rows]


def pending(connection: Connection, model: str, project: str) -> list[Feedback]:
    """Return what no version of a data set has yet, oldest first.

    What went into an upload that was rejected, or deleted since, counts as pending again.
    """
    rows = connection.execute(
        select(feedback)
        .where(feedback.c.project == project, feedback.c.model == model, _pending())
        .order_by(feedback.c.id)
    )
    return [_feedback(row) for row in rows]


def stored_bytes(connection: Connection, project: str) -> int:
    """Return how many bytes the images of a project's feedback have together."""
    chosen = feedback.c.project == project
    return int(connection.scalar(select(func.sum(feedback.c.image_bytes)).where(chosen)) or 0)


def get(connection: Connection, feedback_id: str, project: str) -> Feedback:
    """Return one.

    Raises:
        FeedbackNotFound: There is none of that id in the project.
    """
    row = connection.execute(
        select(feedback).where(feedback.c.id == feedback_id, feedback.c.project == project)
    ).one_or_none()
    if row is None:
        raise FeedbackNotFound(feedback_id)
    return _feedback(row)


def use(connection: Connection, ids: Sequence[str], dataset_id: str) -> None:
    """Note that a version of a data set is being made with them."""
    connection.execute(update(feedback).where(feedback.c.id.in_(ids)).values(dataset_id=dataset_id))


def remove(connection: Connection, feedback_id: str, model: str, project: str) -> None:
    """Delete one of a model's that no version of a data set has.

    Raises:
        FeedbackNotFound: The model has none of that id.
        FeedbackUsed: A version of a data set has it.
    """
    item = get(connection, feedback_id, project)
    if item.model != model:
        raise FeedbackNotFound(feedback_id)
    removed = connection.execute(delete(feedback).where(feedback.c.id == feedback_id, _pending()))
    if not removed.rowcount:
        raise FeedbackUsed(feedback_id, str(item.dataset_id))


def _pending() -> ColumnElement[bool]:
    alive = select(datasets.c.id).where(
        and_(datasets.c.id == feedback.c.dataset_id, datasets.c.status != "rejected")
    )
    return or_(feedback.c.dataset_id.is_(None), ~alive.exists())
