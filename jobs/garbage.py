"""What may go from a data folder, why, and its removal beside a service that runs.

A blob is garbage if no row points to it and nobody has put it for the grace period, nor since the
oldest job began that has not ended. The latter two cover what has files and no row yet: a request
inserts its row within the grace period, and a job publishes what it put before its end. A blob that
is put again meanwhile becomes young under the store's lock and stays (`BlobStore.collect`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from jobs import pointers
from jobs.backup.errors import CollectionBlind, CollectionRefused
from jobs.collect_lock import removing_files
from jobs.store import datasets, retention
from jobs.store.database import Database, utc_now
from jobs.worker_limits import Retention
from models_cache import faults
from models_cache.blobs import BlobStore, Stored

UNPOINTED = "no row points to it"
LEFT = "left by a writer that was killed, or put aside as damaged"
JOB_DELETED = "its job was deleted"
JOB_LONG_ENDED = "its job ended long ago"
UPLOAD_LEFT = "an upload that nobody finished"


@dataclass(frozen=True)
class Item:
    """A file or folder that may go.

    Args:
        path: Where it lies.
        size_bytes: With all that is in it.
        reason: Why it may go.
    """

    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Garbage:
    """What was found.

    Args:
        blobs: Files of the store.
        folders: Run folders and uploads.
        figures: Rows of the event log.
        put_before: Unix seconds: a blob that was put later stays.
        figures_before: Of jobs that ended before, figures go.
        present: How many files that rows need are there.
        missing: How many files that rows need are not.
        lists_lost: Manifests that are gone or damaged: whatever images they name looks unneeded.
    """

    blobs: list[Stored]
    folders: list[Item]
    figures: int
    put_before: float
    figures_before: datetime
    present: int
    missing: int
    lists_lost: list[str]

    def items(self) -> Iterator[Item]:
        """Yield every file and folder that may go."""
        for file in self.blobs:
            yield Item(file.path, file.size_bytes, UNPOINTED if file.sha256 else LEFT)
        yield from self.folders

    def require_plausible(self) -> None:
        """Refuse what looks like the files of another database, or like those of a lost list.

        Raises:
            CollectionRefused: Most of the files that rows need are not there, or no row needs any.
            CollectionBlind: Which images some data sets have cannot be told.
        """
        if self.blobs and (not self.present or self.missing > self.present):
            raise CollectionRefused(self.present, self.missing, len(self.blobs))
        if self.blobs and self.lists_lost:
            raise CollectionBlind(len(self.lists_lost), self.lists_lost[0], len(self.blobs))


def find_garbage(database: Database, data_folder: Path, kept: Retention) -> Garbage:
    """Look for what may go; nothing is changed."""
    blobs = BlobStore(data_folder / "blobs")
    now = time.time()
    # Folders before rows: a job's row is there before its folder.
    folders = list(_folders(data_folder / "runs"))
    with database.read(patient=True) as connection:
        open_since = retention.oldest_open_start(connection)
        put_before = now - kept.grace_seconds
        if open_since is not None:
            put_before = min(put_before, open_since.timestamp())
        needed = {n for owner in pointers.owners(connection, blobs) for n in owner.sha256s}
        names = pointers.names_in_rows(connection) | needed
        lists = datasets.manifests(connection)
        known = retention.job_ids(connection)
        long_ended = retention.ended_job_ids(connection, _days_ago(kept.runs_days))
        figures_before = _days_ago(kept.figures_days)
        figures = retention.count_figures(connection, figures_before)
    found, present = [], 0
    for file in blobs.listing():
        present += file.sha256 in needed
        lists.discard(file.sha256)
        if file.put_at < put_before and file.sha256 not in names:
            found.append(file)
    young = now - kept.grace_seconds
    runs = [_item(path, JOB_LONG_ENDED) for path in folders if path.name in long_ended]
    runs += [
        _item(path, JOB_DELETED)
        for path in folders
        if path.name not in known and _changed_at(path) < young
    ]
    uploads = (path for path in (data_folder / "uploads").glob("*") if _changed_at(path) < young)
    return Garbage(
        blobs=found,
        folders=[*runs, *(_item(path, UPLOAD_LEFT) for path in uploads)],
        figures=figures,
        put_before=put_before,
        figures_before=figures_before,
        present=present,
        missing=len(needed) - present,
        lists_lost=sorted(lists),
    )


def collect(
    database: Database,
    data_folder: Path,
    kept: Retention,
    *,
    force: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Garbage, int]:
    """Remove what may go; safe beside a service that runs, and again after a kill at any point.

    Args:
        database: Its rows.
        data_folder: Its files.
        kept: How long what is kept.
        force: Even if the rows do not look like those of these files.
        should_stop: Asked between removals.

    Returns:
        What was found, and how many bytes were freed.

    Raises:
        CollectionBusy: A backup or another collection is at work.
        CollectionRefused: The rows do not look like those of these files.
        CollectionBlind: Which images some data sets have cannot be told.
    """
    with removing_files(data_folder):
        garbage = find_garbage(database, data_folder, kept)
        if not force:
            garbage.require_plausible()
        blobs = BlobStore(data_folder / "blobs")
        freed_bytes = 0
        for file in garbage.blobs:
            if should_stop():
                break
            freed_bytes += blobs.collect([file], garbage.put_before)
        for item in garbage.folders:
            if should_stop():
                break
            freed_bytes += _removed_bytes(item)
        if garbage.figures and not should_stop():
            with database.write("collect_figures") as connection:
                retention.forget_figures(connection, garbage.figures_before)
    return garbage, freed_bytes


def _removed_bytes(item: Item) -> int:
    faults.reach("collect.before_folder")
    if item.path.is_dir():
        shutil.rmtree(item.path, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)
    faults.reach("collect.after_folder")
    return 0 if item.path.exists() else item.size_bytes


def _folders(parent: Path) -> Iterator[Path]:
    return (path for path in parent.glob("*") if path.is_dir() and not path.is_symlink())


def _item(path: Path, reason: str) -> Item:
    if not path.is_dir():
        return Item(path, _size_bytes(path), reason)
    inside = (Path(parent) / name for parent, _, names in os.walk(path) for name in names)
    return Item(path, sum(map(_size_bytes, inside)), reason)


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _changed_at(path: Path) -> float:
    """Return when a file or folder was last changed; one that is gone is as young as can be."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _days_ago(days: float) -> datetime:
    return utc_now() - timedelta(days=days)
