"""The nearest images to an image, by the direction of their features.

An index is one file: a row per image, its features divided by their length, so that the product of
two rows is the cosine of their angle. It is mapped, not read: thousands of images cost no memory.
What is here can be made again; any file may be deleted at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models_cache import durable
from models_cache.pixels import DECODER

SUFFIX = ".npy"
_FORMAT = 1

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class NeighbourKey:
    """What an index depends on.

    Args:
        architecture: Name of the backbone.
        sha256: Of the file that holds its tensors.
        preprocessing_digest: Of what it is shown of an image.
        images_digest: Of the images in their order.
    """

    architecture: str
    sha256: str
    preprocessing_digest: str
    images_digest: str

    @property
    def digest(self) -> str:
        """SHA-256 over all parts and the decoder."""
        parts = {**asdict(self), "decoder": DECODER, "format": _FORMAT}
        return durable.sha256_of_bytes(durable.canonical_json(parts))


class NeighbourStore:
    """A folder of indexes.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, key: NeighbourKey, images: int) -> Rows | None:
        """Return the rows of an index, float32 `[N, D]`; None if it is not there or damaged."""
        path = self._path(key)
        with suppress(OSError, ValueError):
            rows: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if rows.ndim == 2 and len(rows) == images and rows.dtype == np.float32:
                os.utime(path)  # the time of last use, for whoever bounds the cache
                return rows
        return None

    def write(self, key: NeighbourKey, parts: Iterable[Rows]) -> None:
        """Store rows of unit length, float32 `[n, D]` per part, in the order of the images."""
        rows = np.concatenate(list(parts))
        with durable.writing(self._path(key), point="neighbours") as file:
            np.save(file, rows, allow_pickle=False)

    def _path(self, key: NeighbourKey) -> Path:
        return self._root / f"{key.digest}{SUFFIX}"


def unit_rows(features: Sequence[Sequence[float]]) -> Rows:
    """Return features `[N, D]` divided by their length, float32; a row of zeros stays one."""
    rows: Rows = np.array(features, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows


def nearest(
    rows: Rows, queries: Rows, count: int, among: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Rows]:
    """Return the most similar rows to each query.

    Args:
        rows: Of unit length, float32 `[N, D]`.
        queries: Of unit length, float32 `[Q, D]`.
        count: How many for each, K; fewer if there are not so many.
        among: Numbers of the rows that may be found, ascending.

    Returns:
        Numbers of rows `[Q, K]`, the most similar first, equal ones by number, and their cosines.
    """
    cosines = (queries @ rows.T)[:, among]
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return among[order], np.take_along_axis(cosines, order, axis=1)
