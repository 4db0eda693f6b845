"""Hashes learned from official downloads, and the locks under which files are fetched.

A learned hash is enforced for ever: learning another one for the same file is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models_cache import durable
from models_cache.errors import CatalogueInvalid, WeightsHashMismatch


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` among all processes and threads of this host; ends with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
