from __future__ import annotations

from collections import Counter

import pytest

from jobs.datasets.manifest import LabelledImage
from jobs.datasets.split import draw_val
from models_cache.durable import sha256_of_bytes


def image(name: str, class_name: str, split: str = "") -> LabelledImage:
    return LabelledImage(sha256_of_bytes(name.encode()), 9, name, 8, 8, split, class_name)


def of_class(class_name: str, count: int, start: int = 0) -> list[LabelledImage]:
    return [image(f"{class_name}{i}", class_name) for i in range(start, start + count)]


def splits(images: list[LabelledImage]) -> dict[str, str]:
    return {image.path: image.split for image in images}


@pytest.mark.parametrize(
    ("count", "val"), [(1, 0), (2, 1), (3, 1), (5, 1), (10, 2), (12, 2), (13, 3), (100, 20)]
)
def test_a_fifth_of_each_class_is_held_out(count: int, val: int) -> None:
    drawn = draw_val([*of_class("a", count), *of_class("b", 10)])
    counted = Counter((image.class_name, image.split) for image in drawn)
    assert counted["a", "val"] == val
    assert counted["a", "train"] == count - val
    assert counted["b", "val"] == 2


def test_the_order_of_an_upload_has_no_influence() -> None:
    images = [*of_class("a", 20), *of_class("b", 30)]
    assert splits(draw_val(images)) == splits(draw_val(images[::-1]))


def test_given_splits_stay() -> None:
    images = [image("1", "a", "train"), image("2", "a", "test"), *of_class("a", 8)]
    drawn = splits(draw_val(images))
    assert drawn["1"] == "train"
    assert drawn["2"] == "test"
    assert Counter(drawn.values())["val"] == 2


def test_a_new_version_fills_up_to_a_fifth() -> None:
    kept = draw_val(of_class("a", 20))
    drawn = draw_val(of_class("a", 20, start=20), kept)
    assert Counter(image.split for image in [*kept, *drawn])["val"] == 8
    assert Counter(image.split for image in draw_val(of_class("a", 1, 90), kept)) == {"train": 1}


def test_one_image_is_always_left_to_train_with() -> None:
    kept = [image("test", "a", "test")]
    assert Counter(i.split for i in draw_val(of_class("a", 2), kept, 0.99)) == {
        "train": 1,
        "val": 1,
    }


def test_the_published_rule_does_not_change() -> None:
    held_out = {i.path for i in draw_val(of_class("a", 15)) if i.split == "val"}
    assert held_out == {"a11", "a6", "a7"}
