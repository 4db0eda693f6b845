"""Near duplicates: copies are found, different photographs are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.datasets.appearance import Appearance, appearance_of
from jobs.datasets.near_duplicates import Groups, near_duplicates
from models_cache.decode import decode_rgb, resize_shorter_side
from tests.copies import COPIES, copied, photographs
from tests.images import draw_shape

RANDOM = np.random.default_rng(7)


def look(data: bytes) -> Appearance:
    return appearance_of(resize_shorter_side(decode_rgb(data), 256, "bilinear"))


def drawn(count: int) -> list[Appearance]:
    return [appearance_of(draw_shape("disc", seed, (96, 80))) for seed in range(count)]


@pytest.fixture(scope="module")
def originals(shared: Path) -> list[Appearance]:
    files = photographs(shared / "data" / "hymenoptera.zip")
    return [look(data) for data in files.values()]


@pytest.mark.shared
@pytest.mark.slow
def test_no_two_different_photographs_are_taken_for_copies(originals: list[Appearance]) -> None:
    assert len(originals) == 396
    assert near_duplicates(originals) == []


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("how", COPIES)
def test_photographs_saved_again_are_found(
    how: str, originals: list[Appearance], shared: Path
) -> None:
    files = list(photographs(shared / "data" / "hymenoptera.zip").values())[::5]
    copies = [look(copied(data, how)) for data in files]
    groups = near_duplicates([*originals, *copies])
    pairs = [[5 * i, len(originals) + i] for i in range(len(copies))]
    assert sum(pair in groups for pair in pairs) >= 0.95 * len(pairs)
    assert all(group in pairs for group in groups)


def test_appearance_survives_json() -> None:
    (seen,) = drawn(1)
    assert Appearance.from_json(seen.as_json()) == seen


def test_blank_images_are_in_no_group() -> None:
    blank = appearance_of(np.full((60, 80, 3), 200, dtype=np.uint8))
    assert blank.contrast == 0
    assert near_duplicates([blank, blank]) == []


def test_groups_are_whatever_the_order_and_hold_indirect_members() -> None:
    seen = drawn(3)
    copies = [
        Appearance(one.hash ^ 0b111, one.colours, one.contrast, one.sharpness) for one in seen
    ]
    everything = [*seen, *copies]
    assert near_duplicates(everything) == [[0, 3], [1, 4], [2, 5]]
    order = RANDOM.permutation(len(everything)).tolist()
    shuffled = near_duplicates([everything[i] for i in order])
    assert sorted(sorted(order[i] for i in group) for group in shuffled) == [[0, 3], [1, 4], [2, 5]]


def test_things_joined_through_a_third_are_one_group() -> None:
    groups = Groups(5)
    groups.join(0, np.array([3]))
    groups.join(3, np.array([4]))
    assert groups.of_several() == [[0, 3, 4]]
    assert groups.apart(0, np.array([1, 3, 4])).tolist() == [1]


def test_thousands_of_identical_looks_are_one_group() -> None:
    (seen,) = drawn(1)
    assert near_duplicates([seen] * 3000) == [list(range(3000))]


def test_no_images_have_no_groups() -> None:
    assert near_duplicates([]) == []
