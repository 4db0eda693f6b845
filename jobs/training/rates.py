"""How fast earlier jobs of a kind were on this machine: the estimate of the next one starts there.

One small file for each kind of job; without it, or with a damaged one, the estimate says nothing
until it has measured something itself.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.eta import Rates
from models_cache.durable import canonical_json, sha256_of_bytes, write_bytes


class RatesFolder:
    """Rates by kind of job.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, kind: dict[str, Any]) -> Rates:
        """Return what jobs of a kind (JSON-ready: whatever decides their speed) needed."""
        with suppress(OSError, ValueError, TypeError):
            return Rates(**json.loads(self._path(kind).read_bytes()))
        return Rates()

    def write(self, kind: dict[str, Any], rates: Rates) -> None:
        """Keep what the newest job of a kind needed."""
        write_bytes(self._path(kind), canonical_json(asdict(rates)), point="rates")

    def _path(self, kind: dict[str, Any]) -> Path:
        return self._root / f"{sha256_of_bytes(canonical_json(kind))}.json"
