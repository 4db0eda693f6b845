"""Keeps a collection of garbage away while a backup copies files that rows no longer point to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.backup.errors import CollectionBusy
from models_cache import durable

_NAME = "collect.lock"


@contextmanager
def keeping_files(data_folder: Path) -> Iterator[None]:
    """Hold every file of a data folder; waits for a collection that is at work."""
    with _locked(data_folder, fcntl.LOCK_SH):
        yield


@contextmanager
def removing_files(data_folder: Path) -> Iterator[None]:
    """Hold the right to remove files.

    Raises:
        CollectionBusy: A backup copies them, or someone else removes them.
    """
    with _locked(data_folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(data_folder: Path, how: int) -> Iterator[None]:
    with durable.needing_space("locking the data folder"):
        folder = data_folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise CollectionBusy(str(data_folder)) from None
        yield
    finally:
        os.close(descriptor)
