"""The form of a backup: files named by their SHA-256, and for each backup one list of them.

    graft-backup.json           says what the folder is
    blobs/ab/<sha256>           every file of every backup, once; a blob store
    snapshots/<time>.json       one backup: written last, so that one that is there is complete
    snapshots/<time>.incomplete one that was begun; what remains of it if it was interrupted

A later backup into the same folder copies only what the earlier ones do not have.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.backup.errors import BackupMissing, BackupRunning, BackupTargetInvalid
from models_cache import durable
from models_cache.blobs import Blob, BlobStore

FORMAT = 1
#: Folders of the data folder whose files are no blobs.
RUNS, WEIGHTS = "runs", "weights"
_MARKER = "graft-backup.json"
_SNAPSHOTS = "snapshots"
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class TableCopy:
    """The rows of one table: JSON lines, each the values of a row.

    Args:
        name: Of the table.
        columns: Names of the values in each line.
        rows: How many lines.
        sha256: Of the file of lines.
        size_bytes: Of the file of lines.
    """

    name: str
    columns: list[str]
    rows: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class FileCopy:
    """A file that is no blob: of a run, or of the weights.

    Args:
        path: Relative to the data folder.
        sha256: Of its bytes when it was copied.
        size_bytes: Of the copy.
    """

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One complete backup.

    Args:
        id: When it was begun, `20260102T030405.678901Z`.
        code_version: Of the Graft that made it.
        revision: Of the tables.
        database: `sqlite` or `postgresql`; it can be restored into either.
        tables: Those that others refer to first.
        blobs: Size of each, by SHA-256.
        files: Everything else.
        missing: What rows pointed to and was not there or not whole, by the row's name.
    """

    id: str
    code_version: str
    revision: str
    database: str
    tables: list[TableCopy]
    blobs: dict[str, int]
    files: list[FileCopy]
    missing: dict[str, list[str]]

    def contents(self) -> Iterator[Blob]:
        """Yield every file that it needs, once."""
        sizes = dict(self.blobs)
        sizes |= {table.sha256: table.size_bytes for table in self.tables}
        sizes |= {file.sha256: file.size_bytes for file in self.files}
        for sha256, size_bytes in sorted(sizes.items()):
            yield Blob(sha256, size_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of everything that it needs."""
        return sum(blob.size_bytes for blob in self.contents())


class BackupFolder:
    """A folder that holds backups.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root / "blobs")

    @classmethod
    def create(cls, root: Path, data_folder: Path) -> BackupFolder:
        """Return the folder for a further backup; made if it is not there or empty.

        Raises:
            BackupTargetInvalid: Something else is there, or it lies in the data folder.
        """
        target, data = root.resolve(), data_folder.resolve()
        if target == data or target.is_relative_to(data) or data.is_relative_to(target):
            raise BackupTargetInvalid(str(root), "it lies in the data folder, or that lies in it")
        if root.exists() and not root.is_dir():
            raise BackupTargetInvalid(str(root), "it is not a folder")
        if not (root / _MARKER).is_file():
            if root.is_dir() and any(root.iterdir()):
                raise BackupTargetInvalid(str(root), "something else is in it")
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            durable.write_bytes(root / _MARKER, durable.canonical_json({"format": FORMAT}))
        return cls._checked(root)

    @classmethod
    def find(cls, root: Path) -> BackupFolder:
        """Return a folder that holds backups.

        Raises:
            BackupMissing: It holds none.
            BackupTargetInvalid: They are in a form that is not known here.
        """
        if not (root / _MARKER).is_file():
            raise BackupMissing(str(root), 0)
        return cls._checked(root)

    @classmethod
    def _checked(cls, root: Path) -> BackupFolder:
        found = json.loads((root / _MARKER).read_bytes())["format"]
        if found != FORMAT:
            raise BackupTargetInvalid(str(root), f"it has format {found}, known is {FORMAT}")
        return cls(root)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes into it.

        Raises:
            BackupRunning: Someone else does.
        """
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupRunning(str(self.root)) from None
            yield
        finally:
            os.close(descriptor)

    def begin(self, snapshot_id: str) -> None:
        """Note that a backup is being made, and forget those that were interrupted."""
        self._sweep()
        durable.write_bytes(self._incomplete(snapshot_id), b"", "backup.begin")

    def complete(self, snapshot: Snapshot) -> None:
        """Make a backup whole: all its files are here."""
        data = durable.canonical_json(asdict(snapshot))
        whole = {"sha256": durable.sha256_of_bytes(data), "snapshot": asdict(snapshot)}
        path = self.root / _SNAPSHOTS / f"{snapshot.id}.json"
        durable.write_bytes(path, durable.canonical_json(whole), "backup.snapshot")
        self._incomplete(snapshot.id).unlink()

    def ids(self) -> list[str]:
        """Return the ids of the complete backups, oldest first."""
        return sorted(path.stem for path in (self.root / _SNAPSHOTS).glob("*.json"))

    def snapshot(self, snapshot_id: str | None = None) -> Snapshot:
        """Return a complete backup, the newest unless one is named.

        Raises:
            BackupMissing: There is none, or its list of files is damaged.
        """
        ids = self.ids()
        if not ids or (snapshot_id is not None and snapshot_id not in ids):
            raise BackupMissing(str(self.root), self.incomplete())
        path = self.root / _SNAPSHOTS / f"{snapshot_id or ids[-1]}.json"
        return _parsed(path)

    def incomplete(self) -> int:
        """Return how many were begun and not finished, one that is being made included."""
        return len(list((self.root / _SNAPSHOTS).glob("*.incomplete")))

    def _incomplete(self, snapshot_id: str) -> Path:
        return self.root / _SNAPSHOTS / f"{snapshot_id}.incomplete"

    def _sweep(self) -> None:
        """Remove what an interrupted backup left: only one writes at a time."""
        for pattern in ("*.incomplete", f".*{durable.TEMPORARY_SUFFIX}"):
            for path in (self.root / _SNAPSHOTS).glob(pattern):
                path.unlink()
        self.blobs.sweep()


def _parsed(path: Path) -> Snapshot:
    try:
        whole: dict[str, Any] = json.loads(path.read_bytes())
        value = whole["snapshot"]
        if durable.sha256_of_bytes(durable.canonical_json(value)) != whole["sha256"]:
            raise ValueError("its list of files was changed")
        tables = [TableCopy(**table) for table in value["tables"]]
        files = [FileCopy(**file) for file in value["files"]]
        if any(not _is_ours(PurePosixPath(file.path)) for file in files):
            raise ValueError("it names a file outside the folders that a backup has")
        return Snapshot(**{**value, "tables": tables, "files": files})
    except (ValueError, KeyError, TypeError) as error:
        raise BackupTargetInvalid(str(path), str(error)) from error


def _is_ours(path: PurePosixPath) -> bool:
    """Tell whether a restore may write there: a list that somebody else wrote can name anything."""
    return ".." not in path.parts and path.parts[:1] in ((RUNS,), (WEIGHTS,))
