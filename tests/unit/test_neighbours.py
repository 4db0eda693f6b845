"""Indexes of nearest images: exact, in a fixed order, and no trust in what is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models_cache.neighbours import NeighbourKey, NeighbourStore, nearest, unit_rows

KEY = NeighbourKey("mobilenet_v2", "a" * 64, "b" * 64, "c" * 64)
EVERY = np.arange(4)


def test_nearest_are_those_of_the_smallest_angle_whatever_their_length() -> None:
    rows = unit_rows([[1, 0], [0, 5], [3, 3], [-1, 0]])
    places, cosines = nearest(rows, unit_rows([[10, 1], [0, 1]]), 3, EVERY)
    assert places.tolist() == [[0, 2, 1], [1, 2, 0]]
    assert cosines[1].tolist() == pytest.approx([1, 0.5**0.5, 0])


def test_equally_near_ones_come_in_the_order_of_the_images() -> None:
    rows = unit_rows([[0, 2], [0, 1], [1, 0], [0, 3]])
    places, _ = nearest(rows, unit_rows([[0, 1]]), 4, EVERY)
    assert places.tolist() == [[0, 1, 3, 2]]


def test_only_the_named_rows_are_found_and_no_more_than_there_are() -> None:
    rows = unit_rows([[1, 0], [0, 1], [1, 1], [2, 1]])
    places, cosines = nearest(rows, unit_rows([[1, 0]]), 10, np.array([1, 3]))
    assert places.tolist() == [[3, 1]]
    assert cosines.shape == (1, 2)


def test_a_row_of_zeros_is_near_to_nothing() -> None:
    rows = unit_rows([[0, 0], [1, 0]])
    assert np.isfinite(rows).all()
    places, cosines = nearest(rows, unit_rows([[1, 0]]), 2, np.arange(2))
    assert places.tolist() == [[1, 0]]
    assert cosines[0, 1] == 0


def test_an_index_is_read_back_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    store, rows = NeighbourStore(tmp_path), unit_rows([[3, 4], [1, 0], [0, 1]])
    assert store.open(KEY, 3) is None
    store.write(KEY, [rows[:2], rows[2:]])
    found = store.open(KEY, 3)
    assert found is not None
    assert np.array_equal(found, rows)
    assert store.open(KEY, 4) is None, "of other images"
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    assert store.open(KEY, 3) is None
    path.write_bytes(b"no array")
    assert store.open(KEY, 3) is None
    np.save(path, np.array([{}, {}, {}]), allow_pickle=True)
    assert store.open(KEY, 3) is None, "a pickle"


def test_another_part_of_the_key_is_another_index() -> None:
    others = {
        NeighbourKey("resnet18", KEY.sha256, KEY.preprocessing_digest, KEY.images_digest).digest,
        NeighbourKey(KEY.architecture, "0" * 64, KEY.preprocessing_digest, "c" * 64).digest,
        NeighbourKey(KEY.architecture, KEY.sha256, "0" * 64, KEY.images_digest).digest,
        NeighbourKey(KEY.architecture, KEY.sha256, KEY.preprocessing_digest, "0" * 64).digest,
    }
    assert len(others | {KEY.digest}) == 5
