"""Statements about datasets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, update

from jobs.errors import DatasetFilesMissing, DatasetNotFound
from jobs.store.database import utc_now
from jobs.store.tables import datasets
from models_cache.errors import to_wire


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One immutable version of a dataset; see `tables.datasets` for the columns."""

    id: str
    project: str
    name: str
    version: int
    parent: str | None
    status: str
    archive_sha256: str
    archive_bytes: int
    manifest_sha256: str | None
    report_sha256: str | None
    examined_sha256: str | None
    digest: str | None
    task: str | None
    classes: list[str] | None
    splits: dict[str, Any] | None
    problem: dict[str, Any] | None
    created_at: datetime


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(**row._mapping)


def add(
    connection: Connection,
    dataset_id: str,
    name: str,
    archive: tuple[str, int],
    *,
    parent: str | None = None,
    project: str,
) -> Dataset:
    """Insert a dataset that waits for its ingest; the version follows the name's highest.

    Args:
        connection: In a writing transaction.
        dataset_id: The new id.
        name: What users call it.
        archive: SHA-256 and size in bytes of the uploaded archive's blob.
        parent: The dataset whose images the new version also has.
        project: Whose it is.
    """
    highest = connection.scalar(
        select(func.max(datasets.c.version)).where(
            datasets.c.project == project, datasets.c.name == name
        )
    )
    sha256, size_bytes = archive
    row = connection.execute(
        insert(datasets)
        .values(
            id=dataset_id,
            project=project,
            name=name,
            version=(highest or 0) + 1,
            parent=parent,
            status="processing",
            archive_sha256=sha256,
            archive_bytes=size_bytes,
            created_at=utc_now(),
        )
        .returning(*datasets.c)
    ).one()
    return _dataset(row)


def get(connection: Connection, dataset_id: str, project: str) -> Dataset:
    """Return one dataset.

    Raises:
        DatasetNotFound: There is none of that id in the project.
    """
    row = connection.execute(
        select(datasets).where(datasets.c.id == dataset_id, datasets.c.project == project)
    ).one_or_none()
    if row is None:
        raise DatasetNotFound(dataset_id)
    return _dataset(row)


def count(connection: Connection, project: str) -> int:
    """Return how many data sets a project has, each version counted."""
    chosen = datasets.c.project == project
    return connection.scalar(select(func.count()).select_from(datasets).where(chosen)) or 0


def stored_bytes(connection: Connection, project: str) -> int:
    """Return how many bytes the archives of a project's data sets have together."""
    chosen = datasets.c.project == project
    return int(connection.scalar(select(func.sum(datasets.c.archive_bytes)).where(chosen)) or 0)


def manifests(connection: Connection) -> set[str]:
    """Return the names of the manifests of all data sets that can be used."""
    chosen = select(datasets.c.manifest_sha256).where(datasets.c.status == "ready")
    return set(connection.scalars(chosen))


def newest_of_name(connection: Connection, name: str, project: str) -> Dataset | None:
    """Return the highest version of a name, or None."""
    row = connection.execute(
        select(datasets)
        .where(datasets.c.name == name, datasets.c.project == project)
        .order_by(datasets.c.version.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _dataset(row)


def newest_child(connection: Connection, dataset_id: str, project: str) -> Dataset | None:
    """Return the newest version made of a dataset's images and more, or None."""
    row = connection.execute(
        select(datasets)
        .where(
            datasets.c.parent == dataset_id,
            datasets.c.project == project,
            datasets.c.status != "rejected",
        )
        .order_by(datasets.c.version.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _dataset(row)


def page(connection: Connection, limit: int, after: str | None, project: str) -> list[Dataset]:
    """Return up to `limit` datasets, newest first, behind the one of id `after`."""
    statement = select(datasets).where(datasets.c.project == project)
    if after is not None:
        statement = statement.where(datasets.c.id < get(connection, after, project).id)
    rows = connection.execute(statement.order_by(datasets.c.id.desc()).limit(limit))
    return [_dataset(row) for row in rows]


def set_ready(connection: Connection, dataset_id: str, facts: dict[str, Any]) -> None:
    """Write what ingest found; `facts` has the columns' names. What is decided stays decided."""
    connection.execute(
        update(datasets).where(_processing(dataset_id)).values(status="ready", **facts)
    )


def set_rejected(
    connection: Connection, dataset_id: str, problem: dict[str, Any], report_sha256: str | None
) -> bool:
    """Write why the upload cannot be a dataset; False if it was decided or deleted before."""
    done = connection.execute(
        update(datasets)
        .where(_processing(dataset_id))
        .values(status="rejected", problem=problem, report_sha256=report_sha256)
    )
    return done.rowcount == 1


def set_broken(connection: Connection, dataset_id: str, files: int, first: str) -> None:
    """Reject a dataset that was ready: files of it are gone."""
    problem = to_wire(DatasetFilesMissing(dataset_id, files, first))
    connection.execute(
        update(datasets)
        .where(datasets.c.id == dataset_id, datasets.c.status == "ready")
        .values(status="rejected", problem=problem)
    )


def set_examined(connection: Connection, dataset_id: str, examined_sha256: str) -> None:
    """Write which blob holds what a job found in the images' features; the newest counts."""
    connection.execute(
        update(datasets).where(datasets.c.id == dataset_id).values(examined_sha256=examined_sha256)
    )


def _processing(dataset_id: str) -> ColumnElement[bool]:
    return and_(datasets.c.id == dataset_id, datasets.c.status == "processing")


def versions_in_the_making(connection: Connection, dataset_id: str) -> list[str]:
    """Return the ids of datasets that are being made of this one's images and more."""
    return list(
        connection.scalars(
            select(datasets.c.id).where(
                datasets.c.parent == dataset_id, datasets.c.status == "processing"
            )
        )
    )


def remove(connection: Connection, dataset_id: str) -> None:
    """Delete the row; its blobs are collected later."""
    connection.execute(delete(datasets).where(datasets.c.id == dataset_id))
