"""NumPy's npz: a zip of `.npy` files, read by our own zip walker, never by a pickle.

`numpy.load` would trust names, sizes and, for arrays of objects, code. Here the headers alone are
NumPy's to parse, and an array is exactly as long as its entry.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.archive_zip import ZipEntry, read_entry, walk_zip
from jobs.datasets.array_errors import ArrayTypeUnsupported
from jobs.datasets.array_rules import (
    ARRAY_NAMES,
    IMAGES,
    LABELS,
    ArrayFile,
    Column,
    Pixels,
    check_column,
    column_of,
    label_columns_of,
    picture_shape,
    require,
)
from jobs.datasets.errors import CorruptArchive, printable
from jobs.datasets.limits import ARRAY_SUFFIX, IngestLimits
from models_cache.durable import raise_if_full

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# NumPy evaluates the header as a literal, and else mends and tokenizes it
_HEADER_ERRORS = (
    ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError,
)  # fmt: skip
_PREFIX_BYTES = 12  # magic, version and the longer form of the header's length
_MAX_HEADER_BYTES = 10_000
_BLOCK_BYTES = 64 << 20  # of pictures that are gathered at once out of Fortran order


def is_npz(entries: Sequence[ZipEntry]) -> bool:
    """Tell whether a zip is an npz file: arrays and nothing else."""
    return bool(entries) and all(entry.name.endswith(ARRAY_SUFFIX) for entry in entries)


@contextmanager
def open_npz(path: Path, limits: IngestLimits, scratch: Path) -> Iterator[ArrayFile]:
    """Open an npz file.

    Args:
        path: The upload.
        limits: What it may hold.
        scratch: A file that is not there yet, for pictures in Fortran order.

    Raises:
        ArchiveError: The zip is hostile or damaged.
        ArrayError: An array cannot be used.
        LayoutError: There is no picture.
    """
    with path.open("rb") as file:
        entries = {entry.name.removesuffix(ARRAY_SUFFIX): entry for entry in walk_zip(file, limits)}
        for name in (IMAGES, LABELS):
            require(name, list(entries))
        images = _Array.of(file, entries[IMAGES])
        shape = picture_shape(images.shape, images.dtype, limits)
        arrays = {
            name: _Array.of(file, entries[name])
            for name in ARRAY_NAMES
            if name != IMAGES and name in entries
        }
        columns = {name: _column(array, name, limits) for name, array in arrays.items()}
        others = [entry.name for name, entry in entries.items() if name not in ARRAY_NAMES]
        yield ArrayFile(
            images.shape[0],
            columns,
            label_columns_of(arrays[LABELS].shape),
            others,
            lambda: _fortran(images, shape, scratch) if images.fortran else _rows(images, shape),
        )


@dataclass(frozen=True)
class _Array:
    """One `.npy` entry, its header read and found to be true.

    Args:
        file: The npz.
        entry: Where it is in there.
        shape: Of the array.
        dtype: Of the array; holds no objects.
        fortran: Whether the first index varies fastest.
        header_bytes: Before the first item.
    """

    file: BinaryIO
    entry: ZipEntry
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header_bytes: int

    @classmethod
    def of(cls, file: BinaryIO, entry: ZipEntry) -> _Array:
        start = _Chunks(read_entry(file, entry)).read(_PREFIX_BYTES + _MAX_HEADER_BYTES)
        header = io.BytesIO(start)
        try:
            reader = _HEADER_READERS[np.lib.format.read_magic(header)]
            shape, fortran, dtype = reader(header, max_header_size=_MAX_HEADER_BYTES)
        except _HEADER_ERRORS as error:
            raise CorruptArchive(printable(entry.name), "its header cannot be read") from error
        if dtype.hasobject:
            wanted = "numbers or texts: an array of objects is a pickle, which is never loaded"
            raise ArrayTypeUnsupported(printable(entry.name), "an array of objects", wanted)
        expected = header.tell() + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != entry.size_bytes:
            found = f"it holds {entry.size_bytes} bytes, its header claims {expected}"
            raise CorruptArchive(printable(entry.name), found)
        return cls(file, entry, shape, dtype, fortran, header.tell())

    def content(self) -> _Chunks:
        """Return a reader that stands at the first item."""
        chunks = _Chunks(read_entry(self.file, self.entry))
        chunks.read(self.header_bytes)
        return chunks


class _Chunks:
    """Reads an entry in pieces of any size.

    Args:
        chunks: Its content; looking for its end compares its checksum.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ahead = bytearray()

    def read(self, size_bytes: int) -> bytes:
        """Return so many bytes, or fewer at the end."""
        while len(self._ahead) < size_bytes and (chunk := next(self._chunks, b"")):
            self._ahead += chunk
        data = bytes(self._ahead[:size_bytes])
        del self._ahead[:size_bytes]
        return data


def _column(array: _Array, name: str, limits: IngestLimits) -> Column:
    check_column(name, array.shape, array.dtype, limits)
    content = array.content()
    data = content.read(math.prod(array.shape) * array.dtype.itemsize)
    content.read(1)
    order: Literal["F", "C"] = "F" if array.fortran else "C"
    values: NDArray[Any] = np.ndarray(array.shape, array.dtype, data, order=order)
    return column_of(name, values)


def _rows(images: _Array, shape: Sequence[int]) -> Iterator[Pixels]:
    """Yield pictures that lie one after the other."""
    content, size_bytes = images.content(), math.prod(shape)
    for _ in range(images.shape[0]):
        yield np.frombuffer(content.read(size_bytes), np.uint8).reshape(shape)
    content.read(1)


def _fortran(images: _Array, shape: Sequence[int], scratch: Path) -> Iterator[Pixels]:
    """Yield pictures whose pixels are strewn over the array: the first ones lie side by side."""
    count, size_bytes = images.shape[0], math.prod(shape)
    try:
        with scratch.open("xb") as spool:
            content = images.content()
            while data := content.read(1 << 20):
                spool.write(data)
    except OSError as error:
        raise_if_full(error, "unpacking the upload")
        raise
    with scratch.open("rb") as spool:
        gathered = max(1, _BLOCK_BYTES // size_bytes)
        for first in range(0, count, gathered):
            block = np.empty((size_bytes, min(gathered, count - first)), np.uint8)
            for place, row in enumerate(block):  # one byte of each picture
                spool.seek(place * count + first)
                spool.readinto(row.data)
            for picture in block.T:
                yield picture.reshape(shape, order="F")
    scratch.unlink()
