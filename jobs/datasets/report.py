"""What an ingest found: machine-readable, stored as a blob, also of uploads that are rejected."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs.datasets.diagnosis import Finding
from jobs.datasets.errors import InvalidMetadata, printable
from jobs.errors import DatasetError
from models_cache.blobs import Blob, BlobStore
from models_cache.durable import canonical_json

FORMAT = 1
_MAX_LISTED = 1000
_LISTS = ("errors", "warnings", "ignored", "duplicates", "leakage", "findings")


class Report:
    """Collects findings; each list keeps its first thousand, `counts` the number of all."""

    def __init__(self) -> None:
        self._lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _LISTS}
        self._totals: Counter[str] = Counter()
        self._counts: dict[str, Any] = {}

    def error(self, path: str, code: str, message: str) -> None:
        """An image that could not be used, or the reason why nothing could."""
        self._add("errors", {"path": printable(path), "code": code, "message": message})

    def warning(self, path: str, code: str, message: str) -> None:
        """Something that is used as it is, and that its owner should know."""
        self._add("warnings", {"path": printable(path), "code": code, "message": message})

    def ignored(self, path: str, reason: str) -> None:
        """A file that was left out on purpose."""
        self._add("ignored", {"path": printable(path), "reason": reason})

    def duplicate(self, path: str, duplicate_of: str, sha256: str) -> None:
        """An image left out because the same bytes are in the same class and split already."""
        found = {"path": printable(path), "duplicate_of": printable(duplicate_of), "sha256": sha256}
        self._add("duplicates", found)

    def leakage(self, sha256: str, places: list[tuple[str, str]]) -> None:
        """The same bytes in several splits: places are pairs of split and path."""
        shown = [{"split": split, "path": printable(path)} for split, path in places]
        self._add("leakage", {"sha256": sha256, "images": shown})

    def finding(self, finding: Finding) -> None:
        """Something about the whole data set; see docs/data_report.md."""
        self._add("findings", finding.as_json())

    def count(self, **counts: object) -> None:
        """Add named numbers to `counts`."""
        self._counts.update(counts)

    def total(self, name: str) -> int:
        """Return how many findings a list had, kept or not."""
        return self._totals[name]

    def reject(self, error: DatasetError) -> None:
        """Add why the whole upload is refused, before everything else."""
        entry = str(error.facts.get("entry", ""))
        found = {"path": entry, "code": error.code, "message": str(error)}
        self._lists["errors"].insert(0, found)
        self._totals["errors"] += 1
        if isinstance(error, InvalidMetadata):
            for problem in error.problems:
                self._add("errors", problem)
            self._totals["errors"] += error.total - len(error.problems)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form that is stored."""
        totals = {name: self._totals[name] for name in _LISTS}
        return {"format": FORMAT, **self._lists, "counts": {**self._counts, **totals}}

    def store(self, blobs: BlobStore) -> Blob:
        """Store the report as a blob."""
        return blobs.put_bytes(canonical_json(self.as_json()))

    def _add(self, name: str, found: dict[str, Any]) -> None:
        self._totals[name] += 1
        if len(self._lists[name]) < _MAX_LISTED:
            self._lists[name].append(found)
