"""Hashes learned from official downloads, and the locks under which files are fetched.

A learned hash is enforced for ever: learning another one for the same file is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models_cache import durable
from models_cache.weights_errors import CatalogueInvalid, WeightsHashMismatch

_LOOK_AGAIN_SECONDS = 0.2


@contextmanager
def locked(
    folder: Path, name: str, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock `name` among all processes and threads of this host; ends with its holder.

    Args:
        folder: Folder of lock files.
        name: What is locked.
        while_waiting: Called now and then until the lock is free: whoever waits is not stalled.
    """
    with durable.needing_space("locking a weights file"):
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(folder / f"{name}.lock", flags, 0o600)
    try:
        while not _taken(descriptor):
            while_waiting()
            time.sleep(_LOOK_AGAIN_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class LearnedHashes:
    """Full SHA-256 by file name, in one JSON file.

    Args:
        path: The file; a missing one has learned nothing.
        locks: Folder of lock files.
    """

    def __init__(self, path: Path, locks: Path) -> None:
        self._path = path
        self._locks = locks

    def get(self, file: str) -> str | None:
        """Return the learned hash of a file, if any."""
        item = self._read().get(file)
        return str(item["sha256"]) if item else None

    def learn(self, file: str, sha256: str, source: str) -> None:
        """Record a hash durably.

        Args:
            file: Plain file name.
            sha256: 64 hex digits.
            source: The official address, or `import`.

        Raises:
            WeightsHashMismatch: Another hash was learned before.
        """
        with locked(self._locks, "learned"):
            learned = self._read()
            if (known := learned.get(file)) is not None:
                if known["sha256"] != sha256:
                    raise WeightsHashMismatch(file, source, known["sha256"], sha256)
                return
            now = datetime.now(UTC).isoformat(timespec="seconds")
            learned[file] = {"sha256": sha256, "source": source, "at": now}
            text = json.dumps(learned, indent=1, sort_keys=True)
            durable.write_bytes(self._path, text.encode(), point="weights.learned")

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            learned: dict[str, dict[str, Any]] = json.loads(self._path.read_bytes())
            assert all(len(item["sha256"]) == 64 for item in learned.values())
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            # Not "nothing learned": that would quietly trust a changed file again.
            reason = "it is damaged; restore it, or remove it to learn from official files anew"
            raise CatalogueInvalid(str(self._path), reason) from error
        return learned
