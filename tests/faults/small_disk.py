"""A real file system of a few megabytes or files, that a test can fill and empty."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from models_cache.disk_space import disk_space


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system."""

    folder: Path

    def fill(self, left_bytes: int = 0) -> None:
        """Take all bytes but some."""
        size_bytes = disk_space(self.folder).free_bytes - left_bytes
        number = len(list(self.folder.glob("filler-*")))
        with (self.folder / f"filler-{number}").open("xb") as file:
            if size_bytes > 0:
                os.posix_fallocate(file.fileno(), 0, size_bytes)

    def fill_inodes(self, left: int = 0) -> None:
        """Take all files but some."""
        free = disk_space(self.folder).free_inodes
        assert free is not None, "this file system counts its files"
        number = len(list(self.folder.glob("filler-*")))
        for index in range(free - left):
            (self.folder / f"filler-{number + index}").touch()

    def free(self) -> None:
        """Give everything back."""
        for path in self.folder.glob("filler-*"):
            path.unlink()


@contextmanager
def small_disk(folder: Path, size_bytes: int, inodes: int) -> Iterator[SmallDisk]:
    """Mount a file system in memory; skips where that is not allowed.

    What happens on a full disk is tested there as well, by errors at named points.
    """
    folder.mkdir()
    options = f"size={size_bytes},nr_inodes={inodes},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "graft-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
