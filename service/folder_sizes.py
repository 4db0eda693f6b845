"""How much lies in the folders of state, looked up beside requests: a walk may take minutes."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

FOLDERS = ("blobs", "weights", "cache", "runs", "uploads")
_STALE_SECONDS = 60.0
_REST = 20  # times the length of a walk, before the next


class FolderSizes:
    """The last look at the folders of state. Thread-safe.

    Args:
        data_folder: Where they are.
    """

    def __init__(self, data_folder: Path) -> None:
        self._data_folder = data_folder
        self._sizes: dict[str, int] = {}
        self._next = 0.0
        self._looking = threading.Lock()

    def latest(self) -> dict[str, int]:
        """Return bytes by folder as of the last look, and begin another if it is old.

        Nothing before the first look is over.
        """
        if time.monotonic() >= self._next and self._looking.acquire(blocking=False):
            threading.Thread(target=self._look, daemon=True, name="folder-sizes").start()
        return self._sizes

    def _look(self) -> None:
        started = time.monotonic()
        try:
            self._sizes = {name: _bytes_below(self._data_folder / name) for name in FOLDERS}
        finally:
            ended = time.monotonic()
            self._next = ended + max(_STALE_SECONDS, _REST * (ended - started))
            self._looking.release()


def _bytes_below(folder: Path) -> int:
    """Return the bytes that files below a folder take on disk; what vanishes counts nothing."""
    total_bytes = 0
    waiting = [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
    return total_bytes
