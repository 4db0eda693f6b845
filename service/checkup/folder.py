"""Checks of the data folder: private, writable, lockable, roomy, and what was left in it."""

from __future__ import annotations

import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.backup.unfinished import mark_path
from models_cache import durable
from models_cache.blobs import BlobStore
from models_cache.disk_space import disk_space
from models_cache.errors import InsufficientStorage
from service.checkup.finding import Finding, fine, problem, warning
from service.settings import Settings

_GIGABYTE = 1 << 30
_FEW_INODES = 10_000
_RENAMED_INTO_BLOBS = ("uploads", "runs")
_OLD_SECONDS = 86_400.0


def check_folder(settings: Settings) -> Iterator[Finding]:
    """Look at the data folder; what cannot be done without it is left out."""
    folder = settings.data_dir
    if not folder.is_dir():
        yield warning(
            "data-folder", f"{folder} is not there", "`graft serve` makes it; or set GRAFT_DATA_DIR"
        )
        return
    yield fine("data-folder", str(folder))
    if mark_path(folder).exists():
        yield problem("restore", "a restore was not finished", "run the same `graft restore` again")
    yield from _permissions(folder)
    yield from _room(folder, settings.low_water_bytes)
    written = _written(folder)
    yield written
    if written.advice:
        return
    yield _locks(folder)
    yield _one_file_system(folder)
    yield from _leftovers(folder)


def _permissions(folder: Path) -> Iterator[Finding]:
    for path in (folder, *sorted((folder / "run").glob("*.sock"))):
        mode = stat.S_IMODE(path.stat().st_mode)
        advice = f"chmod go-rwx {path}"
        if mode & stat.S_IWOTH:
            yield problem("permissions", f"anyone may write to {path} ({mode:04o})", advice)
        elif mode & stat.S_IRWXO:
            yield problem("permissions", f"anyone may read {path} ({mode:04o})", advice)
        elif mode & stat.S_IRWXG:
            yield warning("permissions", f"its group may use {path} ({mode:04o})", advice)
        else:
            yield fine("permissions", f"{path} is private ({mode:04o})")


def _room(folder: Path, low_water_bytes: int) -> Iterator[Finding]:
    space = disk_space(folder)
    free = f"{space.free_bytes / _GIGABYTE:.1f} GiB free"
    advice = "free some space: `graft gc` lists what may go"
    if space.free_bytes < low_water_bytes:
        yield problem("disk-space", f"{free}: nothing new is begun", advice)
    elif space.free_bytes < max(4 * low_water_bytes, 2 * _GIGABYTE):
        yield warning("disk-space", free, advice)
    else:
        yield fine("disk-space", free)
    if space.free_inodes is None:
        return
    found = f"{space.free_inodes} files can still be made"
    few = "delete small files, or make the file system with more inodes"
    yield (
        warning("inodes", found, few) if space.free_inodes < _FEW_INODES else fine("inodes", found)
    )


def _written(folder: Path) -> Finding:
    """Write, flush and read back; then remove."""
    path, data = folder / f".doctor-{uuid.uuid4().hex}", os.urandom(4096)
    began = time.monotonic()
    try:
        durable.write_bytes(path, data)
        same = path.read_bytes() == data
    except (OSError, InsufficientStorage) as error:
        return problem(
            "writing", f"{folder} cannot be written: {error}", "make it writable for this user"
        )
    finally:
        _removed(path)
    took_ms = (time.monotonic() - began) * 1000
    if not same:
        return problem("writing", "a file read back differs", "check the disk")
    return fine("writing", f"a flushed file took {took_ms:.0f} ms")


def _locks(folder: Path) -> Finding:
    path = folder / f".doctor-{uuid.uuid4().hex}.lock"
    try:
        with path.open("w") as first, path.open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return fine("locks", "files can be locked")
    except OSError as error:
        return problem("locks", f"files cannot be locked: {error}", "keep it on a local disk")
    finally:
        _removed(path)
    return problem("locks", "a locked file was locked again", "keep it on a local disk")


def _removed(path: Path) -> None:
    with suppress(OSError):  # on a read-only disk it was not made
        path.unlink()


def _one_file_system(folder: Path) -> Finding:
    blobs = folder / "blobs"
    home = (blobs if blobs.is_dir() else folder).stat().st_dev
    others = [
        name
        for name in _RENAMED_INTO_BLOBS
        if (folder / name).is_dir() and (folder / name).stat().st_dev != home
    ]
    if others:
        return problem(
            "one-file-system",
            f"{', '.join(others)} and blobs are on different file systems",
            "files are renamed from one into the other: keep the whole data folder on one",
        )
    return fine("one-file-system", "files can be renamed into blobs")


def _leftovers(folder: Path) -> Iterator[Finding]:
    now = time.time()
    files = [file for file in BlobStore(folder / "blobs").listing() if not file.sha256]
    damaged = [file for file in files if file.path.suffix == ".corrupt"]
    if damaged:
        yield problem(
            "damaged-files",
            f"{len(damaged)} files changed on the disk and were put aside, "
            f"the first is {damaged[0].path.name}",
            "check the disk, then restore a backup",
        )
    uploads = [p.stat().st_mtime for p in (folder / "uploads").glob("*")]
    old = sum(now - file.put_at > _OLD_SECONDS for file in files if file not in damaged)
    old += sum(now - changed_at > _OLD_SECONDS for changed_at in uploads)
    if old:
        yield warning("leftovers", f"{old} old unfinished files", "`graft gc --delete`")
    else:
        yield fine("leftovers", "no old unfinished files")
