"""The audit log: JSON lines in the data folder, only ever appended to, the oldest file dropped.

No table, because what is refused must not cost a transaction, and what is noted while the database
is away is worth most. A line is written before the answer's head is sent; it survives the death of
the process, and without an fsync per call may be lost with the machine. Several processes append to
the same file: lines are written whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.access_errors import AuditEntryNotFound

log = logging.getLogger(__name__)

_FILES = 8  # so many share the bound
_BLOCK_BYTES = 64 << 10
_ENTRY_ID = re.compile(r"aud_(\d{1,8})_(\d{1,12})")


class AuditLog:
    """Appends entries and reads them back, newest first. Thread-safe.

    Args:
        folder: Where; nobody else writes there.
        most_bytes: Bound of all files together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._file_bytes = most_bytes // _FILES
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry, JSON-ready; on a full disk only the log of the process says it."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                written = os.write(self._open(), line)
                if written < len(line):  # the next line must not stand behind half of this one
                    self._close()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # a full disk must not forbid the deletion that would help
            log.error("could not be written to the audit log (%s): %s", error, line.decode())  # noqa: TRY400

    def page(
        self, projects: Sequence[str | None], limit: int, after: str | None
    ) -> list[dict[str, Any]]:
        """Return up to `limit` entries of some projects with their ids, newest first.

        Args:
            projects: Whose entries; None: those of nobody who was let in.
            limit: Most entries.
            after: Id of the last one seen.

        Raises:
            AuditEntryNotFound: `after` is none of these projects' entries, or is gone.
        """
        found: list[dict[str, Any]] = []
        for entry in self._entries(projects, after):
            if len(found) == limit:
                break
            found.append(entry)
        return found

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _entries(
        self, projects: Sequence[str | None], after: str | None
    ) -> Iterator[dict[str, Any]]:
        marks = [f'"project":{json.dumps(project)}'.encode() for project in projects]
        newest, end = self._place(projects, after)
        for number, path in sorted(self._files().items(), reverse=True):
            if newest is not None and number > newest:
                continue
            for offset, line in _lines_backwards(path, end if number == newest else None):
                if any(mark in line for mark in marks):
                    entry = _parsed(line)
                    if entry is not None and entry["project"] in projects:
                        yield {"id": f"aud_{number}_{offset}", **entry}

    def _place(
        self, projects: Sequence[str | None], after: str | None
    ) -> tuple[int | None, int | None]:
        """Return the number of the file, and the offset in it, that an entry stands at."""
        if after is None:
            return None, None
        match = _ENTRY_ID.fullmatch(after)
        number, offset = (int(match[1]), int(match[2])) if match else (-1, 0)
        path = self._files().get(number)
        entry = None if path is None else _parsed(_line_at(path, offset))
        if entry is None or entry["project"] not in projects:
            raise AuditEntryNotFound(after)
        return number, offset

    def _files(self) -> dict[int, Path]:
        """Return the files by number; a higher one is newer."""
        return {int(path.stem.rpartition("-")[2]): path for path in self._folder.glob("audit-*")}

    def _open(self) -> int:
        """Return a file to append to; another one if it is full or was removed."""
        if self._descriptor is not None:
            state = os.fstat(self._descriptor)
            if state.st_size < self._file_bytes and state.st_nlink:
                return self._descriptor
            self._close()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several processes: one makes the next file
            files = self._files()
            number = max(files, default=1)
            if number in files and files[number].stat().st_size >= self._file_bytes:
                number += 1
                self._drop_oldest(files)
            path = self._folder / f"audit-{number:08}.jsonl"
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                os.write(descriptor, b"\n")  # a process died within a line: it ends here
        self._descriptor = descriptor
        return descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _drop_oldest(self, files: dict[int, Path]) -> None:
        kept_bytes = 0
        for _, path in sorted(files.items(), reverse=True):
            kept_bytes += path.stat().st_size
            if kept_bytes + self._file_bytes > self._most_bytes:
                path.unlink()


def _lines_backwards(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their offsets, the last before `end` first."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # dropped meanwhile
        return
    with file:
        start = file.seek(0, os.SEEK_END) if end is None else end
        rest = b""
        while start > 0:
            length = min(_BLOCK_BYTES, start)
            start -= length
            file.seek(start)
            lines = (file.read(length) + rest).split(b"\n")
            offset = start + sum(len(line) + 1 for line in lines)
            for line in reversed(lines[1:]):
                offset -= len(line) + 1
                yield offset, line
            rest = lines[0]
        yield 0, rest


def _line_at(path: Path, offset: int) -> bytes:
    """Return the line that begins at an offset; empty if none does, or the file was dropped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return b""
    with file:
        file.seek(max(0, offset - 1))
        if offset and file.read(1) != b"\n":
            return b""
        return file.readline()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return an entry; None of a line that a dying process did not finish."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "project" in entry else None
