"""Immutable files named by the SHA-256 of their bytes: the only module that builds blob paths.

Files come first, rows point to them. Two writers of the same bytes cannot disagree, so `put` is
idempotent and needs no lock among them. `collect` removes what nobody points to any more: a blob
that is put again although it is there is made young first, under a lock that a collection takes
alone, so that it is either gone before `put` looks or too young to go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from models_cache import durable, faults
from models_cache.errors import BlobCorrupt, BlobMissing

_LOCK = ".lock"
_CORRUPT_SUFFIX = ".corrupt"
_HEX = frozenset("0123456789abcdef")
_COPY_BYTES = 1 << 20

_FLUSHING_THREADS = 8  # of many files at once; they wait for the disk, not for a core


@dataclass(frozen=True)
class Blob:
    """The name and size of stored bytes: how manifests and rows point to a file."""

    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, str | int]:
        """Return `{"sha256", "size"}`, the form manifests use."""
        return {"sha256": self.sha256, "size": self.size_bytes}


@dataclass(frozen=True)
class Stored:
    """A file of the store as a listing found it.

    Args:
        path: Where it lies.
        sha256: Its name; empty for what a killed writer or a damaged disk left.
        size_bytes: Of the file.
        put_at: When it was last put, in seconds of Unix time.
    """

    path: Path
    sha256: str
    size_bytes: int
    put_at: float


class BlobStore:
    """A folder of blobs, two hex digits of fan-out.

    Args:
        root: The folder; made at the first `put`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def local_path(self, sha256: str) -> Path:
        """Return where the blob is or would be; the name is checked, since it becomes a path."""
        if not is_name(sha256):
            raise BlobMissing(sha256[:80])
        return self._root / sha256[:2] / sha256

    def put_bytes(self, data: bytes) -> Blob:
        """Store `data` durably and return its name."""
        sha256 = durable.sha256_of_bytes(data)
        blob = Blob(sha256, len(data))
        if not self._claim(blob):
            durable.write_bytes(self.local_path(sha256), data, point="blob")
        return blob

    def put_all(self, contents: Iterable[bytes]) -> list[Blob]:
        """Store several files durably, side by side, and return their names in this order."""
        with ThreadPoolExecutor(_FLUSHING_THREADS) as pool:
            return list(pool.map(self.put_bytes, contents))

    def put_file(self, source: Path, sha256: str | None = None) -> Blob:
        """Move a closed file of the same file system into the store, durably.

        Args:
            source: The file; gone afterwards.
            sha256: Its hash, if the caller computed it while writing.
        """
        size_bytes = source.stat().st_size
        sha256 = sha256 or durable.sha256_of_file(source)
        blob, path = Blob(sha256, size_bytes), self.local_path(sha256)
        if self._claim(blob):
            source.unlink()
            return blob
        with durable.needing_space("storing a file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            faults.reach("blob.before_fsync")
            _flush(source)
            faults.reach("blob.before_rename")
            source.replace(path)
            faults.reach("blob.after_rename")
            durable.fsync_folder(path.parent)
        return blob

    def put_files(self, sources: Mapping[str, Path]) -> None:
        """Move many closed files of the same file system into the store; all durable at the end.

        The same as `put_file` for each, in less time: files are flushed side by side, so that the
        disk merges the flushes, and each folder once.

        Args:
            sources: By SHA-256, which the caller computed while writing; gone afterwards.
        """
        with durable.needing_space("storing files"):
            self._put_files(sources)

    def _put_files(self, sources: Mapping[str, Path]) -> None:
        fresh = {
            sha256: path
            for sha256, path in sources.items()
            if not self._claim(Blob(sha256, path.stat().st_size))
        }
        faults.reach("blob.before_fsync")
        with ThreadPoolExecutor(_FLUSHING_THREADS) as pool:
            for _ in pool.map(_flush, fresh.values()):
                pass
        faults.reach("blob.before_rename")
        folders = {self.local_path(sha256).parent for sha256 in fresh}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for sha256, source in sources.items():
            if sha256 in fresh:
                source.replace(self.local_path(sha256))
            else:
                source.unlink()
        faults.reach("blob.after_rename")
        with ThreadPoolExecutor(_FLUSHING_THREADS) as pool:
            for _ in pool.map(durable.fsync_folder, folders):
                pass

    def exists(self, blob: Blob) -> bool:
        """Tell whether a blob of that name and size is stored; reads no content."""
        path = self.local_path(blob.sha256)
        return path.is_file() and path.stat().st_size == blob.size_bytes

    def _claim(self, blob: Blob) -> bool:
        """Tell whether a blob is stored; one that is counts as put now, and is not collected."""
        if not self.exists(blob):
            return False
        with self._locked(fcntl.LOCK_SH):
            if not self.exists(blob):  # it was collected a moment ago
                return False
            os.utime(self.local_path(blob.sha256))
            return True

    def copy_from(self, source: BlobStore, blob: Blob) -> None:
        """Put a blob of another store, hashed on the way; nothing if one of that size is here.

        Raises:
            BlobMissing: The other store has none of that name.
            BlobCorrupt: Its bytes there are not what its name says; nothing was put.
            InsufficientStorage: The disk is full.
        """
        if not self._claim(blob):
            source.copy_to(blob.sha256, self.local_path(blob.sha256))

    def copy_to(self, sha256: str, path: Path) -> None:
        """Write a copy of a blob to `path` durably, hashed on the way.

        Raises:
            BlobMissing: There is none of that name.
            BlobCorrupt: Its bytes are not what its name says; nothing was written.
            InsufficientStorage: The disk is full.
        """
        read = hashlib.sha256()
        with self.open(sha256) as file, durable.writing(path, point="copy") as target:
            while chunk := file.read(_COPY_BYTES):
                read.update(chunk)
                target.write(chunk)
            if read.hexdigest() != sha256:
                raise BlobCorrupt(sha256, read.hexdigest())

    def listing(self) -> Iterator[Stored]:
        """Yield every file of the store, in no order; one that goes meanwhile may be missing."""
        for path in self._root.glob("??/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                name = path.name if is_name(path.name) else ""
                yield Stored(path, name, status.st_size, status.st_mtime)

    def sweep(self) -> None:
        """Remove what killed writers left, at once: for whoever knows that nobody else writes."""
        for pattern in (f".*{durable.TEMPORARY_SUFFIX}", f"??/.*{durable.TEMPORARY_SUFFIX}"):
            for path in self._root.glob(pattern):
                path.unlink()

    def collect(self, garbage: Iterable[Stored], put_before: float) -> int:
        """Remove files that nobody has put since; the caller knows that nothing points to them.

        Args:
            garbage: From `listing`.
            put_before: Unix seconds: what was put later stays.

        Returns:
            How many bytes were freed.
        """
        freed_bytes = 0
        for file in garbage:
            with self._locked(fcntl.LOCK_EX), suppress(FileNotFoundError):
                if file.path.stat().st_mtime >= put_before:
                    continue
                faults.reach("collect.before_unlink")
                file.path.unlink()
                freed_bytes += file.size_bytes
            faults.reach("collect.after_unlink")
        return freed_bytes

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with durable.needing_space("locking the store of files"):
            self._root.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._root / _LOCK, flags, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def open(self, sha256: str) -> Iterator[BufferedReader]:
        """Yield the blob's file, opened for reading.

        Raises:
            BlobMissing: There is no such blob.
        """
        try:
            file = self.local_path(sha256).open("rb")
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error
        with file:
            yield file

    def read(self, sha256: str) -> bytes:
        """Return the blob's bytes, checked against its name.

        Raises:
            BlobMissing: There is no such blob.
            BlobCorrupt: Its bytes changed on disk.
        """
        with self.open(sha256) as file:
            data = file.read()
        self._require(sha256, durable.sha256_of_bytes(data))
        return data

    def verify(self, sha256: str) -> None:
        """Raise `BlobMissing` or `BlobCorrupt` unless the stored bytes match their name."""
        with self.open(sha256) as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        self._require(sha256, actual)

    def _require(self, sha256: str, actual: str) -> None:
        """Raise `BlobCorrupt` and put the file aside, so that the same bytes can be put again."""
        if actual == sha256:
            return
        path = self.local_path(sha256)
        os.utime(path)  # a collection leaves it for its time
        path.replace(path.with_name(f"{sha256}{_CORRUPT_SUFFIX}"))
        raise BlobCorrupt(sha256, actual)


def is_name(text: str) -> bool:
    """Tell whether a text can be a blob's name: 64 lower-case hex digits."""
    return len(text) == 64 and set(text) <= _HEX


def _flush(path: Path) -> None:
    os.utime(path)  # it may have been written long before it is put
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o600)
