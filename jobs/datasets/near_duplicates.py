"""Groups of images that look the same: saved again, resized, slightly cropped or brightened.

Two looks have to agree: few bits of the hashes differ, and the coarse colours correlate. Either
alone takes some pairs of different photographs for copies (docs/experiments.md). Every image is
compared with every later one, a row at a time: 50 000 images take seconds and no pair is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.appearance import Appearance
from models_cache.contrast import BLANK_CONTRAST

MAX_DIFFERENT_BITS = 12  # of 64
MIN_COLOUR_CORRELATION = 0.93


class Groups:
    """Which of some things belong together, directly or through others.

    Args:
        count: How many things there are.
    """

    def __init__(self, count: int) -> None:
        self._first = np.arange(count)  # int64 [N]: the first thing of each one's group

    def apart(self, one: int, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the others that are not in the group of `one` yet."""
        apart: NDArray[np.int64] = others[self._first[others] != self._first[one]]
        return apart

    def join(self, one: int, others: NDArray[np.int64]) -> None:
        """Put the groups of all these things together."""
        joined = np.unique(self._first[np.append(others, one)])
        for first in joined[1:]:
            self._first[self._first == first] = joined[0]

    def of_several(self) -> list[list[int]]:
        """Return the groups of at least two, members ascending, by their first member."""
        order = np.argsort(self._first, kind="stable")
        _, starts = np.unique(self._first[order], return_index=True)
        groups = np.split(order, starts[1:])
        return [group.tolist() for group in groups if len(group) > 1]


def near_duplicates(appearances: Sequence[Appearance]) -> list[list[int]]:
    """Return groups of positions of images that look the same; blank images are in none.

    Args:
        appearances: Of images with different bytes.
    """
    places = [i for i, seen in enumerate(appearances) if seen.contrast >= BLANK_CONTRAST]
    hashes = np.array([appearances[i].hash for i in places], dtype=np.uint64)
    colours = [np.frombuffer(appearances[i].colours, np.uint8) for i in places]
    directions = _directions(colours)
    groups = Groups(len(places))
    for one in range(len(places)):
        different_bits = np.bitwise_count(hashes[one + 1 :] ^ hashes[one])
        candidates = np.flatnonzero(different_bits <= MAX_DIFFERENT_BITS) + one + 1
        candidates = groups.apart(one, candidates)
        if len(candidates):
            correlations = directions[candidates] @ directions[one]
            groups.join(one, candidates[correlations >= MIN_COLOUR_CORRELATION])
    return [[places[i] for i in group] for group in groups.of_several()]


def _directions(colours: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return centred rows of length 1, whose products are correlations: float32 `[N, 192]`."""
    if not colours:
        return np.zeros((0, 1), dtype=np.float32)
    rows = np.stack(colours).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows
