"""A file that only takes up space: SQLite cannot delete on a full disk, so room is kept for that.

Given up when a transaction begins with almost nothing free, made again when there is plenty.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models_cache.disk_space import disk_space
from models_cache.durable import TEMPORARY_SUFFIX

_FEWEST_INODES = 16
#: The part of its own size below which it is given up.
_GIVEN_UP_BELOW = 1 / 8


@dataclass(frozen=True)
class Ballast:
    """The file.

    Args:
        path: Beside the database.
        size_bytes: Of the file; 0 for none.
        plenty_bytes: So much must stay free beside it when it is made.
    """

    path: Path
    size_bytes: int
    plenty_bytes: int

    def give_up_if_full(self) -> None:
        """Remove it if the disk is almost full; nothing otherwise."""
        if self.size_bytes == 0:
            return
        space = disk_space(self.path.parent)
        few_inodes = space.free_inodes is not None and space.free_inodes < _FEWEST_INODES
        if few_inodes or space.free_bytes < self.size_bytes * _GIVEN_UP_BELOW:
            self.path.unlink(missing_ok=True)

    def make(self) -> None:
        """Make it, if it is not there and there is plenty of room; no error otherwise."""
        if self.size_bytes == 0 or self.path.exists():
            return
        if disk_space(self.path.parent).free_bytes < self.size_bytes + self.plenty_bytes:
            return
        name = f".{self.path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        temporary = self.path.with_name(name)
        with suppress(OSError):  # another look later
            try:
                with temporary.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, self.size_bytes)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
