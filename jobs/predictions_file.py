"""What a model says of images, as a file: one JSON line each, appended to and resumed.

A line counts once it ends: what a killed attempt left of one is cut off, and the next attempt goes
on behind the last whole line. Of a batch prediction a table for people is made at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from models_cache import durable, faults

PREDICTIONS_NAME = "predictions.jsonl"
TABLE_NAME = "predictions.csv"
_COLUMNS = ("image", "path", "split", "label", "score", "abstained", "ood_score", "error")
_SEPARATOR = "|"


class PredictionsFile:
    """The file of one job, open at the end of what is certain.

    Args:
        path: Where it is, or will be.
        images: Ids of the images, in the order of the lines.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b")
        self.rows = 0
        self._find_end(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write lines and wait until they are on disk."""
        lines = [durable.canonical_json(row) + b"\n" for row in rows]
        self._file.write(b"".join(lines))
        self._file.flush()
        faults.reach(f"predictions.before_fsync:{self.rows}")
        os.fsync(self._file.fileno())
        self.rows += len(lines)

    def _find_end(self, images: Sequence[str]) -> None:
        """Go behind the last whole line of the right image, and cut off what follows."""
        end = 0
        for line in self._file:
            if self.rows == len(images) or not _is_of(line, images[self.rows]):
                break
            self.rows += 1
            end += len(line)
        self._file.seek(end)
        self._file.truncate()


def write_table(predictions: Path, table: Path) -> None:
    """Write the table of a complete file of predictions: a header, then a row per image."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    with durable.writing(table, point="predictions_table") as file, predictions.open("rb") as lines:
        for line in lines:
            writer.writerow(_cells(json.loads(line)))
            file.write(text.getvalue().encode())
            text.seek(0)
            text.truncate()


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    labels = row.get("labels")
    label = row.get("label") if labels is None else _SEPARATOR.join(labels)
    error = row.get("error")
    cells = {**row, "label": label, "error": None if error is None else error["code"]}
    return {name: _unspoken(value) for name, value in cells.items()}


def _unspoken(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: names come from strangers."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _is_of(line: bytes, image: str) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return bool(json.loads(line)["image"] == image)
    except (ValueError, KeyError, TypeError):
        return False
