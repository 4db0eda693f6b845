"""How much room the data folder's disk has, and the mark below which nothing new is begun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from models_cache.errors import DiskSpaceLow

_FEWEST_INODES = 256


@dataclass(frozen=True)
class DiskSpace:
    """What is free for us: bytes, and files that can still be made (None: no such bound)."""

    free_bytes: int
    free_inodes: int | None


def disk_space(folder: Path) -> DiskSpace:
    """Return what is free on the disk of an existing folder; takes microseconds."""
    found = os.statvfs(folder)
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


@dataclass(frozen=True)
class LowWater:
    """The mark: what runs may use the rest of the disk, what comes is refused.

    Args:
        folder: On the disk in question; it exists.
        free_bytes: That must be free for anything new; 0 for no mark.
    """

    folder: Path
    free_bytes: int

    def require(self, coming_bytes: int = 0) -> None:
        """Raise `DiskSpaceLow` if less is free, or would be after `coming_bytes` more."""
        if self.free_bytes == 0:
            return
        space = disk_space(self.folder)
        few_inodes = space.free_inodes is not None and space.free_inodes < _FEWEST_INODES
        if few_inodes or space.free_bytes - coming_bytes < self.free_bytes:
            raise DiskSpaceLow(space.free_bytes, space.free_inodes, coming_bytes, self.free_bytes)
