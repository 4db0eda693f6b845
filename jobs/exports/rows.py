"""Exports as rows: each is a job of type `export`, whose result names the file.

An export lives as long as its job and its version do. There is one of a version and a format,
unless making it failed or its file is gone: then the next request makes another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uuid_utils.compat as uuids
from sqlalchemy import Connection

from jobs import lifecycle
from jobs.exports.errors import ExportNotFound
from jobs.states import TERMINAL, JobEvent, JobState
from jobs.store import jobs, models
from jobs.store.jobs import Job
from jobs.store.models import Version
from models_cache.blobs import Blob

TYPE = "export"


def find(
    connection: Connection, version: Version, format_name: str, stored: Callable[[Blob], bool]
) -> Job | None:
    """Return the export of a version in a format, or None if there is no good one.

    Args:
        connection: In any transaction.
        version: What was exported.
        format_name: A name of `models_cache.export_formats.FORMATS`.
        stored: Tells whether a blob is there.
    """
    for job in of_version(connection, version):
        if job.spec["format"] == format_name and _is_good(job, stored):
            return job
    return None


def add(connection: Connection, version: Version, format_name: str) -> Job:
    """Queue the export of a version in a format, in a writing transaction."""
    new = jobs.NewJob(
        id=f"job_{uuids.uuid7().hex}",
        type=TYPE,
        spec={
            "model": version.name,
            "version": version.version,
            "format": format_name,
            "artifact_digest": version.artifact_digest,
            "time_limit_seconds": None,
        },
        model=version.name,
        project=version.project,
    )
    return jobs.accept(connection, new)


def get(connection: Connection, version: Version, export_id: str) -> Job:
    """Return an export of a version.

    Raises:
        ExportNotFound: It has none of that id.
    """
    for job in of_version(connection, version):
        if job.id == export_id:
            return job
    raise ExportNotFound(version.name, version.version, export_id)


def of_version(connection: Connection, version: Version) -> list[Job]:
    """Return the exports of a version, newest first."""
    found = jobs.of_model(connection, version.name, TYPE, version.project)
    return [job for job in found if job.spec["version"] == version.version]


def remove_all(connection: Connection, version: Version) -> list[str]:
    """Remove the exports of a version that goes, and cancel those that are being made.

    Returns:
        The ids of the removed ones, whose run folders can go.
    """
    removed = []
    for job in of_version(connection, version):
        if job.status in TERMINAL:
            jobs.remove(connection, job.id, job.project)
            removed.append(job.id)
        elif job.status is not JobState.CANCELLING:
            lifecycle.move(connection, job, JobEvent.CANCEL)
    return removed


def publish(connection: Connection, job: Job, last: dict[str, Any]) -> dict[str, Any]:
    """Return the result of an export that a child has made.

    Args:
        connection: In the transaction that ends the job.
        job: The job.
        last: The child's last line.

    Raises:
        ModelNotFound, VersionNotFound: The version was deleted meanwhile.
    """
    found = models.version(connection, str(job.model), job.spec["version"], job.project)
    return {
        "model": found.name,
        "version": found.version,
        "format": job.spec["format"],
        **{key: last[key] for key in ("file", "checked")},
    }


def _is_good(job: Job, stored: Callable[[Blob], bool]) -> bool:
    if job.status is not JobState.SUCCEEDED:
        return job.status not in TERMINAL
    file = (job.result or {})["file"]
    return stored(Blob(file["sha256"], file["size"]))
