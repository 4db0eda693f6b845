"""Arrays into files: each picture of an HDF5 or npz file becomes an image like any other.

From here on nothing knows that there was an array: pixels are stored as PNG, which loses nothing,
so that hashes, duplicates, thumbnails, the report and the decoders work as they do for archives.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image

from jobs.datasets.archive import kind_of
from jobs.datasets.archive_zip import walk_zip
from jobs.datasets.array_hdf5_process import open_hdf5_apart
from jobs.datasets.array_npz import is_npz, open_npz
from jobs.datasets.array_rules import ArrayFile, Pixels, labels_of
from jobs.datasets.layout import Label
from jobs.datasets.limits import IngestLimits
from jobs.datasets.report import Report
from jobs.datasets.unpack import Unpacked, UnpackedFile
from models_cache.durable import raise_if_full, sha256_of_bytes

OpenArrays = Callable[[Path, IngestLimits, Path], AbstractContextManager[ArrayFile]]

_PNG_LEVEL = 1  # a third of the time of level 6 at 224 px, and 9 % more bytes


def array_reader(path: Path, limits: IngestLimits) -> OpenArrays | None:
    """Return what opens an upload as arrays, by its content; None for an archive of files.

    Raises:
        ArchiveTypeUnknown: It is neither.
        ArchiveError: It is a zip that is hostile or damaged.
    """
    with path.open("rb") as file:
        kind = kind_of(file)
        if kind == "hdf5":
            return open_hdf5_apart
        return open_npz if kind == "zip" and is_npz(walk_zip(file, limits)) else None


def unpack_arrays(
    opened: AbstractContextManager[ArrayFile],
    folder: Path,
    report: Report,
    advanced: Callable[[int], None],
) -> Unpacked:
    """Write every picture of an array file into a folder, under numbers.

    Args:
        opened: What `array_reader`'s opener returned.
        folder: Gets files `0`, `1`, ...
        report: Gets the arrays that are not used.
        advanced: Called with the bytes unpacked so far.

    Raises:
        DatasetError: The file is refused; the folder's content is to be thrown away.
        InsufficientStorage: The disk is full.
    """
    named: dict[str, Label] = {}
    unpacked = Unpacked(labels=named)
    done_bytes = 0
    with opened as arrays:
        for name in arrays.others:
            report.ignored(name, "not-an-image")
        labels = labels_of(arrays)
        unpacked.several = arrays.label_columns is not None
        digits = len(str(arrays.count - 1))
        for number, picture in enumerate(arrays.pictures()):
            data = picture if isinstance(picture, bytes) else _png(picture)
            name = _name(f"{number:0{digits}d}", labels[number], isinstance(picture, bytes))
            unpacked.images[name] = _written(name, folder / str(number), data)
            named[name] = labels[number]
            unpacked.files += 1
            done_bytes += len(data)
            advanced(done_bytes)
    return unpacked


def _name(number: str, label: Label, encoded: bool) -> str:
    name = f"images/{number}" if encoded else f"images/{number}.png"
    return f"{label.split}/{name}" if label.split else name


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _written(name: str, path: Path, data: bytes) -> UnpackedFile:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise_if_full(error, "unpacking the upload")
        raise
    return UnpackedFile(name, path, sha256_of_bytes(data), len(data))
