"""Feedback into a new version of a data set, and a job that learns from it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from jobs.datasets.manifest import TRAIN
from jobs.errors import DatasetNotReady, JobNotFound
from jobs.feedback_errors import DatasetUnknown, FeedbackMissing, RetrainImpossible
from jobs.store import datasets, feedback, jobs, webhooks
from jobs.store.datasets import Dataset
from jobs.store.feedback import Feedback
from jobs.store.models import Version
from models_cache.blobs import Blob, BlobStore


def parent_of(connection: Connection, version: Version) -> Dataset:
    """Return the data set that feedback about a version goes into: the newest of its line.

    Raises:
        DatasetUnknown: The model was imported: nothing says what it learned from.
        DatasetNotFound: It was deleted.
        DatasetNotReady: A newer version of it is being checked.
    """
    if version.dataset_id is None:
        raise DatasetUnknown(version.name, version.version)
    newest = datasets.get(connection, version.dataset_id, version.project)
    while (child := datasets.newest_child(connection, newest.id, version.project)) is not None:
        newest = child
    if newest.status != "ready":
        raise DatasetNotReady(newest.id, newest.status)
    return newest


def write_archive(blobs: BlobStore, items: Sequence[Feedback], several: bool, path: Path) -> None:
    """Write a zip of the images and their labels, as an upload would be.

    They are to be learned from: what a model is judged by stays what it was.

    Args:
        blobs: Where the images are.
        items: What people said; of two about one image the later counts.
        several: Whether images of the data set have any number of labels.
        path: Where; nothing is there yet.
    """
    latest = {item.image_sha256: item for item in items}
    rows = []
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for sha256, item in latest.items():
            labels: dict[str, Any] = (
                {"labels": item.labels} if several else {"label": item.labels[0]}
            )
            rows.append(json.dumps({"file_name": sha256, **labels}, ensure_ascii=False))
            archive.writestr(f"{TRAIN}/{sha256}", blobs.read(sha256))
        archive.writestr(f"{TRAIN}/metadata.jsonl", "\n".join(rows) + "\n")


def accept(
    connection: Connection,
    version: Version,
    items: Sequence[Feedback],
    archive: Blob,
    ids: tuple[str, str, str | None],
) -> None:
    """Insert the new version of the data set, the job that checks it, and the one that learns.

    Args:
        connection: In a writing transaction.
        version: The model's version that feedback was about.
        items: What the archive holds.
        archive: What `write_archive` wrote.
        ids: For the data set, for its check, and for the training, if there is to be one.

    Raises:
        FeedbackMissing: Some of it was used or deleted meanwhile.
        RetrainImpossible: Nothing says how the model was trained.
    """
    dataset_id, check_id, training_id = ids
    still = {item.id for item in feedback.pending(connection, version.name, version.project)}
    if not {item.id for item in items} <= still:
        raise FeedbackMissing(version.name)
    parent = parent_of(connection, version)
    kept = (archive.sha256, archive.size_bytes)
    datasets.add(
        connection, dataset_id, parent.name, kept, parent=parent.id, project=version.project
    )
    check = jobs.NewJob(
        id=check_id,
        type="ingest",
        spec={"corrections": True},
        dataset_id=dataset_id,
        project=version.project,
    )
    jobs.accept(connection, check)
    feedback.use(connection, [item.id for item in items], dataset_id)
    if training_id is not None:
        spec = _spec(connection, version)
        training = jobs.NewJob(
            id=training_id,
            type="fine_tune",
            spec={**spec, "dataset": dataset_id},
            dataset_id=dataset_id,
            model=version.name,
            project=version.project,
        )
        jobs.accept(connection, training)
        assert version.job_id is not None, "its specification was read"
        webhooks.hand_on(connection, version.job_id, training_id)


def _spec(connection: Connection, version: Version) -> dict[str, Any]:
    """Return how the version was trained, to be done again on other images."""
    if version.job_id is None:
        raise RetrainImpossible(version.name, version.version)
    try:
        spec = jobs.get(connection, version.job_id, version.project).spec
    except JobNotFound:
        raise RetrainImpossible(version.name, version.version) from None
    return {key: value for key, value in spec.items() if key != "reproduce"}
