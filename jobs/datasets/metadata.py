"""Labels from `metadata.csv` and `metadata.jsonl`, as in Hugging Face's imagefolder.

Columns `file_name` (relative to the file's folder) and `label`, or `labels` for any number of them
(`ant|insect`; in JSON also a list); others are left alone. All faults are told at once, each with
its row.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.datasets.archive_names import clean_name
from jobs.datasets.class_names import class_name
from jobs.datasets.errors import (
    ArchiveError,
    InvalidMetadata,
    LayoutError,
    printable,
)
from jobs.datasets.label_sets import SEPARATOR, joined, separated
from jobs.datasets.limits import IngestLimits

METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl"})
_MAX_PROBLEMS = 100
_MAX_FIELD_CHARACTERS = 1 << 17
_NAME_LIMITS = IngestLimits()

Row = tuple[int, Any, Any]  # number of the row from 1, file_name, label or labels


@dataclass(frozen=True)
class MetadataLabels:
    """What a metadata file says.

    Args:
        labels: For each image its label as written, or its labels joined by `|`.
        several: Whether an image may have any number of labels.
    """

    labels: dict[str, str]
    several: bool


class _Images:
    """The images that there are, found in any Unicode form: macOS packs names in NFD.

    Args:
        names: In the archive's own spelling.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def named(self, name: str) -> list[str]:
        """Return the images of that name; several only if the archive's differ in form alone."""
        return [name] if name in self._names else self._by_form.get(_nfc(name), [])

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(_nfc(name), []).append(name)
        return found


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


class _Problems:
    """What is wrong with the rows of one file: the first of them, and how many."""

    def __init__(self, path: str) -> None:
        self._path = printable(path)
        self._problems: list[dict[str, Any]] = []
        self._total = 0

    def add(self, row: int, code: str, message: str) -> None:
        self._total += 1
        if len(self._problems) < _MAX_PROBLEMS:
            problem = {"path": self._path, "row": row, "code": code, "message": message}
            self._problems.append(problem)

    def too_many_rows(self, row: int, max_rows: int) -> None:
        self.add(row, "too-many-rows", f"there are more than {max_rows} rows")

    def raise_if_any(self) -> None:
        if self._problems:
            first = self._problems[0]
            raise InvalidMetadata(
                self._path,
                self._total,
                f"row {first['row']}: {first['message']}",
                self._problems,
            )


def labels_of(
    path: str, data: bytes, folder: str, images: Collection[str], max_rows: int
) -> MetadataLabels:
    """Return the labels of each image that a metadata file names.

    Args:
        path: Name of the metadata file in the archive.
        data: Its content.
        folder: Where it is; file names are relative to it.
        images: Names of the images that there are.
        max_rows: How many rows are accepted.

    Raises:
        InvalidMetadata: Rows are malformed, name a file that is missing, outside or named
            before, or have no valid label.
    """
    problems = _Problems(path)
    text = _text(data, problems)
    in_csv = path.endswith(".csv")
    several = (_csv_has_labels if in_csv else _jsonl_has_labels)(text)
    rows = _csv_rows if in_csv else _jsonl_rows
    known = _Images(images)
    labels: dict[str, str] = {}
    for row, file_name, label in rows(text, "labels" if several else "label", max_rows, problems):
        if (image := _image_of(row, file_name, folder, known, problems)) is None:
            continue
        if image in labels:
            how = "the same label" if labels[image] == label else "another label"
            message = f"{printable(image)!r} was named before, with {how}"
            problems.add(row, "duplicate-row", message)
        elif several and (names := _names(row, label, problems)) is not None:
            labels[image] = joined(names)
        elif not several and (spelling := _spelling(row, label, problems)) is not None:
            labels[image] = spelling
    problems.raise_if_any()
    return MetadataLabels(labels, several)


def _text(data: bytes, problems: _Problems) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        problems.add(row, "not-utf-8", "the file is not encoded in UTF-8")
        problems.raise_if_any()
        raise


def _csv_has_labels(text: str) -> bool:
    try:
        columns = next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error:
        return False  # told by whoever reads the rows
    return "labels" in columns and "label" not in columns


def _jsonl_has_labels(text: str) -> bool:
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "labels" in first and "label" not in first


def _csv_rows(text: str, column: str, max_rows: int, problems: _Problems) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        _check_columns(columns, column, problems)
        name_at, label_at = columns.index("file_name"), columns.index(column)
        for number, fields in enumerate(reader, start=2):
            if number > max_rows:
                problems.too_many_rows(number, max_rows)
                return
            if len(fields) == len(columns):
                yield number, fields[name_at], fields[label_at]
            elif fields:
                message = f"it has {len(fields)} fields, the header has {len(columns)}"
                problems.add(number, "wrong-field-count", message)
    except csv.Error as error:
        problems.add(reader.line_num, "malformed-csv", f"line {reader.line_num}: {error}")


def _check_columns(columns: list[str], column: str, problems: _Problems) -> None:
    for name in ("file_name", column):
        if columns.count(name) != 1:
            shown = printable(", ".join(columns))
            message = f"there has to be one column {name!r}; the columns are: {shown}"
            problems.add(1, "missing-column", message)
    problems.raise_if_any()


def _jsonl_rows(text: str, column: str, max_rows: int, problems: _Problems) -> Iterator[Row]:
    # Split off no more than is read: 60 MB of empty lines would be gigabytes of strings
    for number, line in enumerate(text.split("\n", max_rows), start=1):
        if not line.strip():
            continue
        if number > max_rows:
            problems.too_many_rows(number, max_rows)
            return
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            problems.add(number, "malformed-json", "the line is no JSON object")
            continue
        if not isinstance(value, dict) or "file_name" not in value:
            problems.add(number, "missing-column", "the line is no object with 'file_name'")
        else:
            yield number, value["file_name"], value.get(column)


def _image_of(
    row: int, file_name: object, folder: str, images: _Images, problems: _Problems
) -> str | None:
    if not isinstance(file_name, str):
        problems.add(row, "invalid-file-name", "file_name is no text")
        return None
    shown = printable(file_name)
    if "://" in file_name:
        problems.add(row, "url-not-supported", f"{shown!r} is a URL; put the image in the archive")
        return None
    try:
        name = clean_name(file_name, _NAME_LIMITS)
    except ArchiveError as error:
        problems.add(row, error.code, str(error))
        return None
    found = images.named(f"{folder}/{name}" if folder else name)
    if not found:
        problems.add(row, "missing-file", f"there is no image {shown!r} in the archive")
    elif len(found) > 1:
        message = f"{shown!r} is the name of {len(found)} images in other Unicode forms"
        problems.add(row, "ambiguous-file-name", message)
    return found[0] if len(found) == 1 else None


def _names(row: int, labels: object, problems: _Problems) -> list[str] | None:
    """Return the labels of a text or a list, checked one by one; None if one of them is none."""
    parts = separated(labels) if isinstance(labels, str) else labels
    if not isinstance(parts, (list, tuple)):
        problems.add(row, "invalid-label", "labels is neither a text nor a list")
        return None
    names = [_spelling(row, part, problems) for part in parts]
    if any(name is not None and SEPARATOR in name for name in names):
        problems.add(row, "invalid-label", f"a label holds {SEPARATOR!r}, which separates labels")
        return None
    found = [name for name in names if name is not None]
    return found if len(found) == len(names) else None


def _spelling(row: int, label: object, problems: _Problems) -> str | None:
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str):
        problems.add(row, "invalid-label", "label is no text")
        return None
    try:
        class_name(label)
    except LayoutError as error:
        problems.add(row, error.code, str(error))
        return None
    return label
