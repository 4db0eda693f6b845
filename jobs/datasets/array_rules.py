"""What an HDF5 or npz file has to hold to become a dataset, whichever of the two it is.

`images`: uint8 `[N, H, W, 3]`, `[N, H, W, 1]` or `[N, H, W]`. `labels`: integers or texts `[N]`;
integers with `class_names`, texts `[C]`, are indices into them. Or 0 and 1 `[N, C]`: any number of
labels per image, a column for each class. `splits`: texts `[N]`.
Sizes are claims of strangers: everything here is judged before a byte of an array is read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.array_errors import (
    ArrayCellsInvalid,
    ArrayLengthMismatch,
    ArrayMissing,
    ArrayNamesMismatch,
    ArrayTooLarge,
    ArrayTypeUnsupported,
    ArrayValuesInvalid,
)
from jobs.datasets.errors import (
    ArchiveTooLarge,
    CorruptArchive,
    EmptyDataset,
    TooManyClasses,
    TooManyEntries,
    printable,
)
from jobs.datasets.label_sets import SEPARATOR, joined
from jobs.datasets.layout import SPLIT_OF_FOLDER, Label
from jobs.datasets.limits import IngestLimits
from jobs.datasets.manifest import TRAIN

IMAGES, LABELS, CLASS_NAMES, SPLITS = "images", "labels", "class_names", "splits"
ARRAY_NAMES = (IMAGES, LABELS, CLASS_NAMES, SPLITS)
WANTED_IMAGES = "uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]"
_WANTED_LABELS = "integers or texts [N], or whole numbers 0 and 1 [N, C]"
_WANTED_TEXTS = "texts [N]"
_MAX_NAMED = 10
_MAX_LABELS = (
    5_000_000  # of all images together, where one may have several: as lists they take memory
)

Pixels = NDArray[np.uint8]
Column = list[int] | list[str] | list[list[int]]


@dataclass(frozen=True)
class ArrayFile:
    """An opened array file: small arrays in memory, pictures one after the other.

    Args:
        count: Pictures, N.
        columns: The arrays besides `images` that it holds, by name.
        label_columns: Columns of `labels` where each is a class, C; then the labels of an image are
            the indices of its ones. None: an image has one label.
        others: Names of what else it holds; never read.
        pictures: Yields N pictures: uint8 `[H, W, 3]` or `[H, W]`, or an encoded image's bytes.
    """

    count: int
    columns: Mapping[str, Column]
    label_columns: int | None
    others: Sequence[str]
    pictures: Callable[[], Iterator[Pixels | bytes]]


def require(name: str, found: Sequence[str]) -> None:
    """Check that an array is there.

    Raises:
        ArrayMissing: It is not.
    """
    if name not in found:
        shown = [printable(other) for other in list(found)[:_MAX_NAMED]]
        raise ArrayMissing(name, shown)


def picture_shape(shape: Sequence[int], dtype: np.dtype[Any], limits: IngestLimits) -> list[int]:
    """Return the shape of one picture, `[H, W, 3]` or `[H, W]`, after checking `images`.

    Args:
        shape: As claimed.
        dtype: As claimed.
        limits: Of images and of the upload.

    Raises:
        ArrayTypeUnsupported: Another type or shape.
        EmptyDataset: No picture.
        TooManyEntries: More pictures than files are accepted.
        ArrayTooLarge: A picture has more pixels, or a longer side, than is accepted.
        ArchiveTooLarge: All pictures together.
    """
    channels = shape[3] if len(shape) == 4 else 1
    if dtype != np.uint8 or len(shape) not in (3, 4) or channels not in (1, 3):
        raise ArrayTypeUnsupported(IMAGES, described(shape, dtype), WANTED_IMAGES)
    check_count(shape[0], limits)
    height_px, width_px = shape[1:3]
    if not height_px or not width_px:
        raise ArrayTypeUnsupported(IMAGES, described(shape, dtype), WANTED_IMAGES)
    if height_px * width_px > limits.max_image_pixels:
        raise ArrayTooLarge(IMAGES, "pixels in each picture", limits.max_image_pixels)
    if max(height_px, width_px) > limits.max_side_px:
        raise ArrayTooLarge(IMAGES, "pixels along a side", limits.max_side_px)
    if math.prod(shape) > limits.max_unpacked_bytes:
        raise ArchiveTooLarge(f"array {IMAGES!r}", limits.max_unpacked_bytes)
    return [height_px, width_px] + ([3] if channels == 3 else [])


def check_count(count: int, limits: IngestLimits) -> None:
    """Check how many pictures there are.

    Raises:
        EmptyDataset: None.
        TooManyEntries: More than files are accepted.
    """
    if count == 0:
        raise EmptyDataset(0)
    if count > limits.max_entries:
        raise TooManyEntries(limits.max_entries)


def check_column(
    name: str, shape: Sequence[int], dtype: np.dtype[Any], limits: IngestLimits
) -> None:
    """Check a small array before it is read.

    Raises:
        ArrayTypeUnsupported: It has another shape or type.
        ArrayTooLarge: It claims more than a file may hold.
        TooManyClasses: It has a column for each of too many classes.
    """
    wanted = _WANTED_LABELS if name == LABELS else _WANTED_TEXTS
    # Column vectors, [N, 1], are what some writers make of a list; floats are told apart later
    flat = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    kinds = "USO"
    if name == LABELS:
        columns = label_columns_of(shape)
        if columns is not None and columns > limits.max_classes:
            raise TooManyClasses(columns, limits.max_classes)
        flat = flat or columns is not None
        kinds = "iufUSO" if columns is None else "biu"
    if not flat or dtype.kind not in kinds:
        raise ArrayTypeUnsupported(name, described(shape, dtype), wanted)
    if math.prod(shape) * max(1, dtype.itemsize) > limits.max_entry_bytes:
        raise ArrayTooLarge(name, "bytes", limits.max_entry_bytes)


def label_columns_of(shape: Sequence[int]) -> int | None:
    """Return how many classes `labels` of a shape has a column for; None if it has no columns."""
    return shape[1] if len(shape) == 2 and shape[1] > 1 else None


def column_of(name: str, values: NDArray[Any]) -> Column:
    """Return a small array as a list: integers, texts out of UTF-8, or the ones of each row.

    Args:
        name: For messages.
        values: As read, of a kind that `check_column` accepts, in any byte order.

    Raises:
        ArrayTypeUnsupported: The labels are floats.
        ArrayValuesInvalid: A label is NaN, a text is not UTF-8.
        ArrayCellsInvalid: A cell of a row is neither 0 nor 1.
        ArrayTooLarge: The rows have more ones than images may have labels.
        CorruptArchive: A text is none at all.
    """
    if label_columns_of(values.shape) is not None:
        return _ones_of_rows(name, values)
    values = values.reshape(-1)
    if values.dtype.kind == "f":
        _refuse(name, np.isnan(values).tolist(), "are NaN; give every image a label")
        raise ArrayTypeUnsupported(name, described(values.shape, values.dtype), _WANTED_LABELS)
    if values.dtype.kind == "U" and not _is_unicode(values):
        raise CorruptArchive(name, "it holds no valid text")
    items: list[Any] = values.tolist()
    if values.dtype.kind in "iu":
        return items
    texts = [_text(item) for item in items]
    _refuse(name, [text is None for text in texts], "are not encoded in UTF-8; encode them again")
    return [text for text in texts if text is not None]


def labels_of(arrays: ArrayFile) -> list[Label]:
    """Return the label of each picture.

    Raises:
        ArrayLengthMismatch: `labels` or `splits` are not as many as the images.
        ArrayNamesMismatch: There are more or fewer names than columns of labels.
        ArrayValuesInvalid: A label is no index into `class_names`, a name cannot be one of several,
            or a split is none.
    """
    labels = arrays.columns[LABELS]
    splits = arrays.columns.get(SPLITS)
    for name, column in ((LABELS, labels), (SPLITS, splits)):
        if column is not None and len(column) != arrays.count:
            raise ArrayLengthMismatch(name, len(column), arrays.count)
    class_names = arrays.columns.get(CLASS_NAMES)
    if arrays.label_columns is None:
        spellings = _spellings(labels, class_names)
    else:
        names = _names_of_columns(arrays.label_columns, class_names)
        spellings = [joined(names[i] for i in row) for row in labels if isinstance(row, list)]
    if splits is None:
        return [Label("", spelling) for spelling in spellings]
    return [Label(*pair) for pair in zip(_splits(splits), spellings, strict=True)]


def described(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Return type and shape in words: `float32 [10, 3, 32, 32]`."""
    return f"{printable(str(dtype))} {list(shape)}"


def _ones_of_rows(name: str, values: NDArray[Any]) -> list[list[int]]:
    bad = (values != 0) & (values != 1)
    if count := int(bad.sum()):
        places = np.argwhere(bad)[:_MAX_NAMED].tolist()
        cells = [[row, column, int(values[row, column])] for row, column in places]
        raise ArrayCellsInvalid(name, count, values.size, cells)
    if np.count_nonzero(values) > _MAX_LABELS:
        raise ArrayTooLarge(name, "labels of all images together", _MAX_LABELS)
    return [np.flatnonzero(row).tolist() for row in values]


def _names_of_columns(columns: int, class_names: Column | None) -> list[str]:
    """Return the class of each column: its number, or the name that is given."""
    if class_names is None:
        return [str(column) for column in range(columns)]
    names = [str(name).strip() for name in class_names]
    if len(names) != columns:
        raise ArrayNamesMismatch(CLASS_NAMES, len(names), LABELS, columns)
    bad = [not name or SEPARATOR in name for name in names]
    _refuse(CLASS_NAMES, bad, f"are empty or contain {SEPARATOR!r}, which separates labels")
    _refuse(
        CLASS_NAMES, [name in names[:i] for i, name in enumerate(names)], "repeat an earlier name"
    )
    return names


def _spellings(labels: Column, class_names: Column | None) -> list[str]:
    if class_names is None:
        return [str(label) for label in labels]
    bad = [not isinstance(label, int) or not 0 <= label < len(class_names) for label in labels]
    _refuse(LABELS, bad, f"are no index into the {len(class_names)} of {CLASS_NAMES!r}")
    return [str(class_names[label]) for label in labels if isinstance(label, int)]


def _splits(splits: Column) -> list[str]:
    found = [SPLIT_OF_FOLDER.get(str(split).casefold()) for split in splits]
    _refuse(SPLITS, [split is None for split in found], "are none of train, val and test")
    if TRAIN not in found:
        _refuse(SPLITS, [True] * len(found), f"are not {TRAIN!r}; some images have to be")
    return [split for split in found if split is not None]


def _is_unicode(texts: NDArray[np.str_]) -> bool:
    """Tell whether every character is one; NumPy itself asserts it, and dies of others."""
    if not texts.nbytes:
        return True
    number = np.dtype(np.uint32).newbyteorder(texts.dtype.byteorder)
    return bool(np.ascontiguousarray(texts).view(number).max() <= sys.maxunicode)


def _text(value: object) -> str | None:
    """Return a text; None for bytes that are not UTF-8."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _refuse(name: str, bad: Sequence[bool], reason: str) -> None:
    rows = [row for row, is_bad in enumerate(bad) if is_bad]
    if rows:
        raise ArrayValuesInvalid(name, len(rows), len(bad), reason, rows[:_MAX_NAMED])
