"""What is on disk after everything has come to rest: the rows, the files, the processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from jobs.store import tables
from jobs.store.database import Database
from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore
from models_cache.durable import TEMPORARY_SUFFIX
from models_cache.errors import GraftError


@dataclass(frozen=True)
class FinalJob:
    """A job's row and the statuses and attempts of its log, oldest first."""

    id: str
    type: str
    status: str
    attempt: int
    lease_token: str | None
    states: tuple[tuple[str, int], ...]
    sequence: tuple[int, ...]
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class FinalVersion:
    """A published version, and why it cannot be used, if it cannot."""

    model: str
    version: int
    job_id: str | None
    artifact_digest: str
    problem: str | None = None


@dataclass(frozen=True)
class FinalState:
    """Everything that is judged.

    Args:
        jobs: By id.
        datasets: Status by id.
        missing_files: Blobs that rows point to and that are missing or damaged.
        versions: All published ones.
        keys: What each idempotency key made.
        temporary_files: Left in the data folder, relative to it.
        processes: That still run and should not.
        database_is_sound: SQLite's own check.
    """

    jobs: dict[str, FinalJob] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    missing_files: tuple[str, ...] = ()
    versions: tuple[FinalVersion, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)
    temporary_files: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    database_is_sound: bool = True


def read_final_state(
    data_folder: Path, below: list[psutil.Process] | None = None, database_url: str = ""
) -> FinalState:
    """Read rows and files of a service that has ended.

    Args:
        data_folder: Its state.
        below: Processes that it had; none may live.
        database_url: Empty for SQLite in the data folder.
    """
    database = Database(database_url or f"sqlite:///{data_folder / 'graft.db'}")
    blobs = BlobStore(data_folder / "blobs")
    try:
        with database.read() as connection:
            job_rows = connection.execute(select(tables.jobs)).all()
            log = connection.execute(
                select(tables.job_events).order_by(
                    tables.job_events.c.job_id, tables.job_events.c.seq
                )
            ).all()
            dataset_rows = connection.execute(select(tables.datasets)).all()
            versions = connection.execute(select(tables.model_versions)).all()
            keys = connection.execute(select(tables.idempotency_keys)).all()
            sound = not database.is_sqlite or (
                connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            )
    finally:
        database.close()
    names = ("archive_sha256", "manifest_sha256", "report_sha256", "examined_sha256")
    wanted = {getattr(row, name) for row in dataset_rows for name in names} - {None}
    return FinalState(
        jobs={
            row.id: _job(row, [line for line in log if line.job_id == row.id]) for row in job_rows
        },
        datasets={row.id: row.status for row in dataset_rows},
        missing_files=tuple(sorted(sha for sha in wanted if _problem_of_blob(blobs, sha))),
        versions=tuple(_version(blobs, row) for row in versions),
        keys={row.key: row.resource for row in keys},
        temporary_files=tuple(_temporary_files(data_folder)),
        processes=tuple(str(process) for process in below or [] if lives(process)),
        database_is_sound=sound,
    )


def lives(process: psutil.Process) -> bool:
    """Tell whether a process runs, or is stopped; one that waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _job(row: Any, log: list[Any]) -> FinalJob:  # noqa: ANN401 - rows
    states = [line.data for line in log if line.kind == "state"]
    return FinalJob(
        id=row.id,
        type=row.type,
        status=row.status,
        attempt=row.attempt,
        lease_token=row.lease_token,
        states=tuple((data["status"], data.get("attempt", 0)) for data in states),
        sequence=tuple(line.seq for line in log),
        result=row.result,
    )


def _version(blobs: BlobStore, row: Any) -> FinalVersion:  # noqa: ANN401 - a row
    problem = None
    try:
        verify_artifact(blobs, row.artifact_digest)
    except GraftError as error:
        problem = str(error)
    return FinalVersion(row.name, row.version, row.job_id, row.artifact_digest, problem)


def _problem_of_blob(blobs: BlobStore, sha256: str) -> str | None:
    try:
        blobs.verify(sha256)
    except GraftError as error:
        return str(error)
    return None


def _temporary_files(data_folder: Path) -> list[str]:
    """Return temporary files that a start does not sweep away at once; those of killed writers
    are swept after an hour, which a caller that kills has to allow for."""
    return sorted(
        str(p.relative_to(data_folder)) for p in data_folder.rglob(f"*{TEMPORARY_SUFFIX}")
    )
