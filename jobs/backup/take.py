"""Makes a backup while the service runs.

Rows first, in one snapshot of the database, then the files that they point to: files never change
and come before their rows, so a copy that is made later has all of them. A collection of garbage
is kept away meanwhile. Left out: checkpoints and run folders of jobs that have not ended (these
begin again after a restore) and what is made again (caches) or fetched again (weights, unless
asked for).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Table

from jobs import pointers
from jobs.backup.errors import NothingToBackUp
from jobs.backup.folder import RUNS, WEIGHTS, BackupFolder, FileCopy, Snapshot, TableCopy
from jobs.collect_lock import keeping_files
from jobs.store import retention, rows
from jobs.store.database import Database
from models_cache import durable, faults
from models_cache.blobs import Blob, BlobStore
from models_cache.errors import BlobCorrupt, BlobMissing

#: Called with what is being copied, how many of its bytes are done, and how many there are.
Report = Callable[[str, int, int], None]

_COPYING_THREADS = 8  # they wait for the disk more than for a core
_NOT_KEPT = frozenset({"checkpoints"})  # of the run folder of a job that ended
_LEARNED_HASHES = "learned.json"


@dataclass(frozen=True)
class Source:
    """The service that is copied.

    Args:
        database: Its rows.
        data_folder: Its files.
        code_version: Of this Graft.
    """

    database: Database
    data_folder: Path
    code_version: str

    @property
    def blobs(self) -> BlobStore:
        """Its blobs."""
        return BlobStore(self.data_folder / "blobs")


def take_backup(
    source: Source,
    root: Path,
    *,
    with_weights: bool = False,
    report: Report = lambda _what, _done, _total: None,
) -> Snapshot:
    """Copy a service into a folder, which may hold earlier backups.

    Args:
        source: What is copied; it may be running.
        root: Where to.
        with_weights: Also copy the pretrained weights on disk.
        report: Called now and then.

    Returns:
        What was copied; its `missing` names what rows point to and is not there or not whole.

    Raises:
        BackupTargetInvalid: The folder cannot hold a backup.
        BackupRunning: Another one is being written into it.
        NothingToBackUp: The database has no tables.
        InsufficientStorage: The disk is full; earlier backups are as they were.
    """
    folder = BackupFolder.create(root, source.data_folder)
    with folder.writing(), keeping_files(source.data_folder):
        snapshot_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        folder.begin(snapshot_id)
        is_newest = source.database.is_migrated()  # older tables may lack a column
        with source.database.read(patient=True) as connection:
            revision = rows.revision_of(connection)
            if revision is None:
                raise NothingToBackUp
            tables, wanted_names = _copy_rows(connection, folder)
            wanted_names |= pointers.images_of_all(connection, source.blobs)
            ended = retention.ended_job_ids(connection)
            present = pointers.present_blobs(source.blobs)
            missing = {}
            if is_newest:
                missing = pointers.missing_files(connection, source.blobs, present)
        faults.reach("backup.after_rows")
        wanted = pointers.as_blobs(wanted_names, present)
        damaged = _copy_blobs(source.blobs, folder.blobs, wanted, report)
        files = list(_copy_files(source.data_folder, folder, _paths(source, ended, with_weights)))
        snapshot = Snapshot(
            id=snapshot_id,
            code_version=source.code_version,
            revision=revision,
            database="sqlite" if source.database.is_sqlite else "postgresql",
            tables=tables,
            blobs={b.sha256: b.size_bytes for b in wanted if b.sha256 not in damaged},
            files=files,
            missing={str(owner): names for owner, names in missing.items()}
            | ({"damaged files": sorted(damaged)} if damaged else {}),
        )
        folder.complete(snapshot)
    return snapshot


def _copy_rows(connection: Connection, folder: BackupFolder) -> tuple[list[TableCopy], set[str]]:
    """Copy every table; return the copies and whatever in them could be the name of a blob."""
    names: set[str] = set()
    copies = []
    for table in rows.tables_of(connection):
        path = folder.root / "blobs" / f".{uuid.uuid4().hex}{durable.TEMPORARY_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        count = 0
        with durable.needing_space("copying rows"), path.open("xb") as file:
            for row in _lines(connection, table, names):
                file.write(row)
                count += 1
        blob = folder.blobs.put_file(path)
        copies.append(
            TableCopy(
                name=table.name,
                columns=list(table.columns.keys()),
                rows=count,
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
            )
        )
    return copies, names


def _lines(connection: Connection, table: Table, names: set[str]) -> Iterator[bytes]:
    for row in rows.read_rows(connection, table):
        names |= pointers.names_in(table.name, row)
        yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _copy_blobs(
    source: BlobStore, target: BlobStore, blobs: Iterable[Blob], report: Report
) -> set[str]:
    """Copy blobs, those that are there already excepted; return the names of damaged ones."""
    todo = list(blobs)
    total_bytes = sum(blob.size_bytes for blob in todo)
    damaged: set[str] = set()

    def copy(blob: Blob) -> int:
        try:
            target.copy_from(source, blob)
        except (BlobCorrupt, BlobMissing):
            damaged.add(blob.sha256)
        return blob.size_bytes

    done_bytes = 0
    with ThreadPoolExecutor(_COPYING_THREADS) as pool:
        for size_bytes in pool.map(copy, todo):
            done_bytes += size_bytes
            report("files", done_bytes, total_bytes)
    return damaged


def _paths(source: Source, ended: set[str], with_weights: bool) -> Iterator[Path]:
    """Yield the files that are no blobs: of jobs that ended, and of the weights."""
    for job_id in sorted(ended):
        yield from _below(source.data_folder / RUNS / job_id)
    weights = source.data_folder / WEIGHTS
    for path in sorted(weights.glob("*")):
        if path.is_file() and (with_weights or path.name == _LEARNED_HASHES):
            yield path


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_KEPT)
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _copy_files(
    data_folder: Path, folder: BackupFolder, paths: Iterable[Path]
) -> Iterator[FileCopy]:
    """Copy files; one that goes meanwhile, with its deleted job, is left out."""
    for path in paths:
        copy = folder.root / "blobs" / f".{uuid.uuid4().hex}{durable.TEMPORARY_SUFFIX}"
        try:
            with durable.needing_space(f"copying {path.name}"):
                shutil.copyfile(path, copy)
        except FileNotFoundError:
            continue
        blob = folder.blobs.put_file(copy)
        name = str(path.relative_to(data_folder))
        yield FileCopy(path=name, sha256=blob.sha256, size_bytes=blob.size_bytes)
