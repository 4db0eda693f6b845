"""What people may download of a job's folder: fixed names, each with its place and type.

A file is opened without following a link, and as much is sent as it held at that moment: it may
still grow, or be replaced by a new one under the same name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jobs.executors.protocol import LOG_FILE_NAME
from jobs.metrics_files import EVENTS_NAME, METRICS_NAME
from jobs.predictions_file import PREDICTIONS_NAME, TABLE_NAME
from jobs.progress import FILE_NAME as PROGRESS_NAME
from models_cache.artifacts import EVALUATION_FILE, PLOT_FILES

_CHUNK_BYTES = 1 << 18
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class RunFile:
    """A name that may be asked for.

    Args:
        media_type: What is in it.
        of_attempt: Whether each attempt has its own; that of the newest which has one is meant.
        most_bytes: How much of its end is sent; None for all of it.
    """

    media_type: str
    of_attempt: bool = False
    most_bytes: int | None = None


#: Every file by name. Reports that a part of a job leaves for people belong here as well.
RUN_FILES: dict[str, RunFile] = {
    LOG_FILE_NAME: RunFile("text/plain; charset=utf-8", of_attempt=True, most_bytes=_TAIL_BYTES),
    PROGRESS_NAME: RunFile("application/x-ndjson", of_attempt=True, most_bytes=_TAIL_BYTES),
    METRICS_NAME: RunFile("application/x-ndjson"),
    EVENTS_NAME: RunFile("application/octet-stream"),
    "data_report.json": RunFile("application/json", of_attempt=True),
    PREDICTIONS_NAME: RunFile("application/x-ndjson"),
    TABLE_NAME: RunFile("text/csv; charset=utf-8"),
    EVALUATION_FILE: RunFile("application/json"),
    **{name: RunFile("image/svg+xml") for name in PLOT_FILES},
}


@dataclass(frozen=True)
class Opened:
    """A file that can be sent.

    Args:
        chunks: Its bytes, exactly `size_bytes` in all; closes the file at the end.
        size_bytes: Of what is sent.
        media_type: What it is.
    """

    chunks: Iterator[bytes]
    size_bytes: int
    media_type: str


def open_run_file(run_folder: Path, attempt: int, name: str) -> Opened | None:
    """Open a file of a job; None if the name may not be asked for or there is no such file yet.

    Args:
        run_folder: Folder of the job.
        attempt: Number of its newest attempt.
        name: What was asked for.
    """
    kind = RUN_FILES.get(name)
    if kind is None:
        return None
    file = _newest(run_folder, attempt, name)
    if file is None:
        return None
    size_bytes = os.fstat(file.fileno()).st_size
    sent_bytes = size_bytes if kind.most_bytes is None else min(size_bytes, kind.most_bytes)
    file.seek(size_bytes - sent_bytes)
    return Opened(_read(file, sent_bytes), sent_bytes, kind.media_type)


def list_run_files(run_folder: Path, attempt: int) -> dict[str, int]:
    """Return the sizes in bytes, by name, of the files that there are."""
    sizes = {}
    for name in RUN_FILES:
        file = _newest(run_folder, attempt, name)
        if file is not None:
            with file:
                sizes[name] = os.fstat(file.fileno()).st_size
    return sizes


def _newest(run_folder: Path, attempt: int, name: str) -> BinaryIO | None:
    if not RUN_FILES[name].of_attempt:
        return _opened(run_folder / name)
    files = (_opened(run_folder / str(number) / name) for number in range(attempt, 0, -1))
    return next((file for file in files if file is not None), None)


def _opened(path: Path) -> BinaryIO | None:
    """Open a regular file; None for anything else, links included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def _read(file: BinaryIO, left_bytes: int) -> Iterator[bytes]:
    with file:
        while left_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, left_bytes))):
            left_bytes -= len(chunk)
            yield chunk
