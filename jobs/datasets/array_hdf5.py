"""HDF5 files: plain datasets at the top of the file, and nothing that leads anywhere else.

The format can name other files in five ways (external raw storage, external links, virtual
datasets, filter plugins, drivers), and the library follows them all: a dataset of a few bytes
returns what any file of this machine holds. Each is refused before anything is read. The library
is C code on strangers' bytes, so only `array_hdf5_process` may call this module.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.array_errors import (
    ArrayFilterUnsupported,
    ArrayNotPlain,
    ArrayTooLarge,
    ArrayTypeUnsupported,
    Hdf5Unavailable,
)
from jobs.datasets.array_rules import (
    ARRAY_NAMES,
    IMAGES,
    LABELS,
    ArrayFile,
    Pixels,
    check_column,
    check_count,
    column_of,
    described,
    label_columns_of,
    picture_shape,
    require,
)
from jobs.datasets.errors import (
    ArchiveBomb,
    ArchiveTooLarge,
    CorruptArchive,
    EntryTooLarge,
    TooManyEntries,
)
from jobs.datasets.limits import IngestLimits

# Of h5py, which is not imported before it is needed, and has no types
Dataset = Any
Hdf5File = Any

_WANTED_ENCODED = "or encoded images, each a uint8 array of any length, [N]"
_MAX_MEMBERS = 1000
_GZIP, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = frozenset({_GZIP, _SHUFFLE, _FLETCHER32, _LZF})
_BLOCK_BYTES = 16 << 20  # of pictures that are read at once, where chunks do not say more
_MAX_BLOCK_BYTES = (
    768 << 20
)  # the pictures that a row of chunks covers; well below the memory limit


@contextmanager
def open_hdf5(path: Path, limits: IngestLimits, _scratch: Path) -> Iterator[ArrayFile]:
    """Open an HDF5 file.

    Args:
        path: The upload.
        limits: What it may hold.

    Raises:
        ArrayError: An array cannot be used, or is not one that is stored in the file itself.
        ArchiveError: The file is damaged, or claims far more than its size can honestly hold.
        LayoutError: There is no picture.
        Hdf5Unavailable: h5py is not installed.
    """
    h5py = _library()
    with _damage("the file"):
        file = h5py.File(path, "r", driver="sec2", locking=False)
    with file:
        members = _members(file)
        for name in (IMAGES, LABELS):
            require(name, members)
        packed_bytes = path.stat().st_size
        found = {}
        for name in (name for name in ARRAY_NAMES if name in members):
            with _damage(name):
                found[name] = _stored_here(h5py, file, name)
                _check_packing(h5py, found[name], name, packed_bytes, limits)
        images = found.pop(IMAGES)
        pictures = _pictures(h5py, images, packed_bytes, limits)
        columns = {
            name: column_of(name, _column(h5py, dataset, name, limits))
            for name, dataset in found.items()
        }
        others = [name for name in members if name not in ARRAY_NAMES]
        label_columns = label_columns_of(found[LABELS].shape)
        yield ArrayFile(images.shape[0], columns, label_columns, others, lambda: pictures)


def _library() -> ModuleType:
    """Import h5py with filter plugins off for this process.

    Raises:
        Hdf5Unavailable: It cannot be imported.
    """
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # the library's own word for: load none, ever
    try:
        import h5py  # noqa: PLC0415 - strangers' files only: the library is C code
    except ImportError as error:
        raise Hdf5Unavailable(str(error)) from error
    library: ModuleType = h5py
    return library


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn what the library raises on damaged files into one error."""
    try:
        yield
    except MemoryError as error:
        reason = "reading it takes more memory than is allowed"
        raise CorruptArchive(name, reason) from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the disk's fault, not the library's: those name no file
        reason = f"HDF5 cannot read it ({str(error)[:120]})"
        raise CorruptArchive(name, reason) from error


def _members(file: Hdf5File) -> list[str]:
    """Return the names at the top of the file."""
    with _damage("the file"):
        if len(file) > _MAX_MEMBERS:
            raise TooManyEntries(_MAX_MEMBERS)
        names = list(file)
    if not all(isinstance(name, str) for name in names):  # as h5py gives those of damaged groups
        raise CorruptArchive("the file", "a name in it is none")
    return names


def _stored_here(h5py: ModuleType, file: Hdf5File, name: str) -> Dataset:
    """Return a dataset, opened only if its name leads to one in this file.

    Raises:
        ArrayNotPlain: It is a link, a group, virtual, in other files or of a shared type.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ArrayNotPlain(name, "a link")
    if file.get(name, getclass=True) is not h5py.Dataset:
        raise ArrayNotPlain(name, "no dataset")
    dataset = file[name]
    plan = dataset.id.get_create_plist()
    if plan.get_external_count():
        raise ArrayNotPlain(name, "stored in other files")
    if plan.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise ArrayNotPlain(name, "a view of other datasets")
    if dataset.id.get_type().committed():
        raise ArrayNotPlain(name, "of a type that is stored beside it")
    if dataset.shape is None:
        raise ArrayNotPlain(name, "empty")
    return dataset


def _check_packing(
    h5py: ModuleType, dataset: Dataset, name: str, packed_bytes: int, limits: IngestLimits
) -> None:
    """Check how a dataset is packed, before anything of it is unpacked.

    Raises:
        ArrayFilterUnsupported: By a filter that is not built in.
        ArchiveBomb: It claims far more than the file can honestly hold.
        ArrayNotPlain: It was never written to its end.
        ArrayTooLarge: One row of chunks does not fit in memory.
    """
    plan = dataset.id.get_create_plist()
    filters = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if others := sorted(filters - _FILTERS):
        raise ArrayFilterUnsupported(name, others[0])
    claimed_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if claimed_bytes > max(limits.ratio_free_bytes, limits.max_ratio * packed_bytes):
        raise ArchiveBomb(name, limits.max_ratio)
    if not _is_written(h5py, dataset):
        raise ArrayNotPlain(name, "not completely written")
    if dataset.chunks and _block_rows(dataset) * _row_bytes(dataset) > _MAX_BLOCK_BYTES:
        what = "bytes in the items that one row of chunks covers"
        raise ArrayTooLarge(name, what, _MAX_BLOCK_BYTES)


def _is_written(h5py: ModuleType, dataset: Dataset) -> bool:
    """Tell whether every part was written: what is missing would be read as zeros."""
    if not dataset.size:
        return True
    if dataset.chunks:
        per_axis = (-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
        return bool(dataset.id.get_num_chunks() == math.prod(per_axis))
    return bool(dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED)


def _column(h5py: ModuleType, dataset: Dataset, name: str, limits: IngestLimits) -> NDArray[Any]:
    """Read a small array."""
    check_column(name, dataset.shape, dataset.dtype, limits)
    if dataset.dtype.kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
        raise ArrayTypeUnsupported(name, described(dataset.shape, dataset.dtype), "texts")
    with _damage(name):
        values: NDArray[Any] = dataset[()]
    return values


def _pictures(
    h5py: ModuleType, images: Dataset, packed_bytes: int, limits: IngestLimits
) -> Iterator[Pixels | bytes]:
    """Check `images` and return what yields its pictures."""
    if images.dtype.kind != "O":
        shape = picture_shape(images.shape, images.dtype, limits)
        return _raw_pictures(images, shape)
    if h5py.check_vlen_dtype(images.dtype) != np.uint8 or len(images.shape) != 1:
        found = described(images.shape, images.dtype)
        raise ArrayTypeUnsupported(IMAGES, found, f"uint8 [N, H, W, 3], {_WANTED_ENCODED}")
    check_count(images.shape[0], limits)
    return _encoded_pictures(images, packed_bytes, limits)


def _raw_pictures(images: Dataset, shape: Sequence[int]) -> Iterator[Pixels]:
    """Yield pixels, whole rows of chunks at once: each chunk is unpacked once."""
    rows = _block_rows(images)
    for first in range(0, images.shape[0], rows):
        with _damage(IMAGES):
            block: Pixels = images[first : first + rows]
        for picture in block:
            yield picture.reshape(shape)


def _encoded_pictures(images: Dataset, packed_bytes: int, limits: IngestLimits) -> Iterator[bytes]:
    """Yield encoded images; several items may point to the same bytes, so what is read counts."""
    allowed_bytes = min(limits.max_unpacked_bytes, limits.max_ratio * packed_bytes)
    read_bytes = 0
    for item in range(images.shape[0]):
        with _damage(IMAGES):
            data: bytes = images[item].tobytes()
        read_bytes += len(data)
        if len(data) > limits.max_entry_bytes:
            raise EntryTooLarge(f"{IMAGES}[{item}]", limits.max_entry_bytes)
        if read_bytes > allowed_bytes:
            raise ArchiveTooLarge(f"array {IMAGES!r}", allowed_bytes)
        yield data


def _block_rows(dataset: Dataset) -> int:
    """Return how many items along the first axis are read at once."""
    several = max(1, _BLOCK_BYTES // max(1, _row_bytes(dataset)))
    if not dataset.chunks:
        return several
    chunk = int(dataset.chunks[0])
    return chunk * max(1, several // chunk)


def _row_bytes(dataset: Dataset) -> int:
    size_bytes: int = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return size_bytes
