"""The one way a file that must survive a power cut is written.

Temporary name in the same folder, fsync, rename, fsync of the folder: a reader sees all or
nothing. Files are private (0600), since data folders hold other people's photographs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from models_cache import faults
from models_cache.errors import InsufficientStorage

TEMPORARY_SUFFIX = ".tmp"
_CHUNK_BYTES = 1 << 20


@contextmanager
def writing(path: Path, point: str = "file") -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends without an error.

    Args:
        path: Where the file will be; its folder is made.
        point: Prefix of the fault points `<point>.before_fsync|before_rename|after_rename`.

    Raises:
        InsufficientStorage: The disk, its inodes or a quota is full; `path` is as before, or
            complete if only making its name durable failed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            yield f
            f.flush()
            faults.reach(f"{point}.before_fsync")
            os.fsync(f.fileno())
        faults.reach(f"{point}.before_rename")
        os.replace(temporary, path)  # noqa: PTH105 - the rename is the point here
        faults.reach(f"{point}.after_rename")
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_full(error, f"writing {path.name}")
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def needing_space(doing: str) -> Iterator[None]:
    """Raise `InsufficientStorage` for a full disk inside the block; other errors pass."""
    try:
        yield
    except OSError as error:
        raise_if_full(error, doing)
        raise


def raise_if_full(error: OSError, doing: str) -> None:
    """Raise `InsufficientStorage` from an `OSError` that means a full disk; else return."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InsufficientStorage(doing) from error


def write_bytes(path: Path, data: bytes, point: str = "file") -> None:
    """Write `data` to `path` durably and atomically; see `writing`."""
    with writing(path, point) as file:
        file.write(data)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - JSON is any
    """Return the one UTF-8 JSON form of `value`: what is hashed and what is stored."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
