"""Brings a backup back into an empty data folder and an empty database.

A mark lies in the data folder from the first file to the last row: a service refuses to start on
it, and the same restore goes on where it was interrupted. Every step may be repeated: files that
are there are not copied again, rows are inserted in one transaction, and then tables are migrated,
jobs queued again, and pretrained weights fetched that models need and the backup has not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from jobs import lifecycle, pointers, weights_fetching
from jobs.backup.errors import BackupDamaged, BackupTooNew, RestoreTargetUsed
from jobs.backup.folder import WEIGHTS, BackupFolder, FileCopy, Snapshot, TableCopy
from jobs.backup.take import Report
from jobs.backup.unfinished import mark_path
from jobs.backup.verify import verify_backup
from jobs.states import JobEvent
from jobs.store import datasets, models, retention, rows, workers
from jobs.store.database import Database, known_revisions
from models_cache import durable
from models_cache.artifacts import describe_artifact
from models_cache.blobs import Blob, BlobStore
from models_cache.errors import ArtifactError, BlobCorrupt, BlobMissing, StorageError

_COPYING_THREADS = 8
_TOLD_BY = ("datasets", "jobs")  # a restore changes no id in these


@dataclass(frozen=True)
class Restored:
    """What came back.

    Args:
        snapshot: Which backup.
        queued_again: Ids of the jobs that ran when it was made.
        fetched: Architectures whose pretrained weights are fetched when the service runs.
        broken: Rows whose files are not there, with how many.
    """

    snapshot: Snapshot
    queued_again: list[str]
    fetched: list[str]
    broken: dict[str, int]


def restore_backup(
    folder: BackupFolder,
    snapshot: Snapshot,
    data_folder: Path,
    database: Database,
    report: Report = lambda _what, _done, _total: None,
) -> Restored:
    """Bring a backup back.

    Args:
        folder: Where the backup is.
        snapshot: Which one.
        data_folder: An empty folder, or one that an interrupted restore of the same backup left.
        database: Its database, empty; any kind, whatever the backup was made of.
        report: Called now and then.

    Raises:
        RestoreTargetUsed: There is something in the folder or in the database.
        BackupDamaged: A file of the backup is not what it should be; nothing was written.
        BackupTooNew: It has tables of a later version of Graft; nothing was written.
    """
    _require_known(snapshot)
    mark = mark_path(data_folder)
    goes_on = mark.is_file() and json.loads(mark.read_bytes()) == snapshot.id
    if not goes_on:
        _require_empty(data_folder, database)
        verify_backup(folder, snapshot, report)
        durable.write_bytes(mark, durable.canonical_json(snapshot.id), "restore.mark")
    _copy_blobs(folder, snapshot, BlobStore(data_folder / "blobs"), report)
    for file in snapshot.files:
        _copy_file(folder, file, data_folder)
    _copy_rows(folder, snapshot, database)
    database.migrate()
    restored = _settle(snapshot, database, data_folder)
    mark.unlink()
    durable.fsync_folder(data_folder)
    return restored


def _require_known(snapshot: Snapshot) -> None:
    if snapshot.revision not in known_revisions():
        raise BackupTooNew(snapshot.revision)


def _require_empty(data_folder: Path, database: Database) -> None:
    if data_folder.exists() and any(data_folder.iterdir()):
        raise RestoreTargetUsed(f"the data folder {data_folder}")
    if database.is_sqlite and not Path(database.url.database or "").exists():
        return  # it is in the data folder, and a look would make it
    with database.read() as connection:
        if not rows.is_empty(connection):
            raise RestoreTargetUsed("the database")


def _copy_blobs(
    folder: BackupFolder, snapshot: Snapshot, target: BlobStore, report: Report
) -> None:
    blobs = [Blob(sha256, size_bytes) for sha256, size_bytes in sorted(snapshot.blobs.items())]
    total_bytes = sum(blob.size_bytes for blob in blobs)
    done_bytes = 0
    target.sweep()
    try:
        with ThreadPoolExecutor(_COPYING_THREADS) as pool:
            copying = pool.map(partial(target.copy_from, folder.blobs), blobs)
            for blob, _ in zip(blobs, copying, strict=True):
                done_bytes += blob.size_bytes
                report("files", done_bytes, total_bytes)
    except (BlobCorrupt, BlobMissing) as error:  # since it was verified
        raise BackupDamaged(snapshot.id, 1, error.sha256) from error


def _copy_file(folder: BackupFolder, file: FileCopy, data_folder: Path) -> None:
    path = data_folder / file.path  # below a folder of ours: checked when the list was read
    if not path.is_file() or durable.sha256_of_file(path) != file.sha256:
        folder.blobs.copy_to(file.sha256, path)


def _copy_rows(folder: BackupFolder, snapshot: Snapshot, database: Database) -> None:
    """Insert all rows into tables of the backup's own version, unless they are there.

    Raises:
        RestoreTargetUsed: Other rows are there: this is not the database of the first try.
    """
    with database.read(patient=True) as connection:
        if not rows.is_empty(connection):
            if not all(_holds(connection, folder, copy) for copy in snapshot.tables):
                raise RestoreTargetUsed("the database")
            return
    database.migrate(snapshot.revision)
    with database.write("restore_rows") as connection:
        found = {table.name: table for table in rows.tables_of(connection)}
        for copy in snapshot.tables:
            lines = _rows_of(folder, copy)
            rows.write_rows(connection, found[copy.name], copy.columns, lines)
            rows.go_on_counting(connection, found[copy.name])


def _holds(connection: Connection, folder: BackupFolder, copy: TableCopy) -> bool:
    """Tell whether a table has the rows of a copy, by their ids; of few tables, that is enough."""
    if copy.name not in _TOLD_BY:
        return True
    place = copy.columns.index("id")
    there = next(table for table in rows.tables_of(connection) if table.name == copy.name)
    wanted = {row[place] for row in _rows_of(folder, copy)}
    return set(connection.scalars(select(there.c.id))) == wanted


def _rows_of(folder: BackupFolder, copy: TableCopy) -> Iterator[list[Any]]:
    with folder.blobs.open(copy.sha256) as file:
        for line in file:
            yield json.loads(line)


def _settle(snapshot: Snapshot, database: Database, data_folder: Path) -> Restored:
    """Make the rows true again: no worker holds a job, and what lacks its images is rejected.

    A data set of which just the archive or a report is gone can still be learned from.
    """
    blobs = BlobStore(data_folder / "blobs")
    present = pointers.present_blobs(blobs)
    with database.read(patient=True) as connection:
        missing = pointers.missing_files(connection, blobs, present)
        needed = _missing_weights(connection, blobs, data_folder / WEIGHTS)
    with database.write("restore_end") as connection:
        held = retention.held_jobs(connection)
        for job in held:
            lifecycle.move(connection, job, JobEvent.LOSE)
        workers.remove_all(connection)
        for owner, absent in missing.items():
            if owner.kind == pointers.IMAGES:
                datasets.set_broken(connection, owner.id, len(absent), min(absent))
        for (architecture, name), project in needed.items():
            weights_fetching.queue(connection, architecture, name, project)
    broken = {str(owner): len(absent) for owner, absent in missing.items()}
    fetched = sorted({architecture for architecture, _ in needed})
    return Restored(snapshot, [job.id for job in held], fetched, broken)


def _missing_weights(
    connection: Connection, blobs: BlobStore, folder: Path
) -> dict[tuple[str, str], str]:
    """Return architecture and name of weights that models need and the folder has not.

    Each with a project that has such a model. Artifacts that cannot be read are left to
    `pointers.missing_files`.
    """
    needed: dict[tuple[str, str], str] = {}
    for digest, project in models.artifact_digests(connection):
        with suppress(ArtifactError, StorageError):
            facts = describe_artifact(blobs, digest).facts
            file, name = (str((facts.weights or {}).get(key, "")) for key in ("file", "name"))
            if facts.kind == "head" and name and not (folder / Path(file).name).is_file():
                needed.setdefault((facts.architecture, name), project)
    return needed
