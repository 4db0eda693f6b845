"""Packs drawn images into HDF5 and npz files, as users would, and as attackers do."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.images import draw_shape

CLASS_NAMES = ("disc", "square")


def drawn(per_class: int = 6, side_px: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 `[N, side, side, 3]` of two shapes in turn, and their labels."""
    labels = np.arange(2 * per_class) % 2
    size = (side_px, side_px)
    images = [draw_shape(CLASS_NAMES[label], seed, size) for seed, label in enumerate(labels)]
    return np.stack(images), labels


def npz_bytes(compressed: bool = True, **arrays: Any) -> bytes:  # noqa: ANN401 - what numpy takes
    """Return what `numpy.savez` writes."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array: Any, allow_pickle: bool = False) -> bytes:  # noqa: ANN401 - what numpy takes
    """Return what `numpy.save` writes."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip of files under any names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def hdf5_bytes(folder: Path, write: Callable[[h5py.File], object]) -> bytes:
    """Return an HDF5 file that `write` filled."""
    path = folder / "made.h5"
    with h5py.File(path, "w") as file:
        write(file)
    data = path.read_bytes()
    path.unlink()
    return data


def encoded_items(images: list[bytes]) -> NDArray[Any]:
    """Return encoded images as items of any length, for a dataset of `encoded_type()`."""
    items = np.empty(len(images), dtype=object)
    for place, data in enumerate(images):
        items[place] = np.frombuffer(data, np.uint8)
    return items


def encoded_type() -> np.dtype[Any]:
    """Return the type of a dataset whose items are encoded images."""
    kind: np.dtype[Any] = h5py.vlen_dtype(np.uint8)
    return kind
