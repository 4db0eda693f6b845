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


def test_images_that_look_the_same_are_drawn_to_the_same_side() -> None:
    images = [*of_class("a", 40), *of_class("b", 40)]
    group_of = {one.sha256: images[i - i % 4].sha256 for i, one in enumerate(images)}
    drawn = draw_val(images, group_of=group_of)
    sides = {(group_of[image.sha256], image.split) for image in drawn}
    assert len(sides) == 20
    counted = Counter((image.class_name, image.split) for image in drawn)
    assert counted["a", "val"] == counted["b", "val"] == 8


def test_images_that_look_like_a_decided_one_follow_it() -> None:
    kept = [image("old", "a", "val"), *(image(f"k{i}", "a", "train") for i in range(4))]
    images = [image("copy of old", "a"), image("copy of k0", "a"), *of_class("b", 5)]
    group_of = {kept[0].sha256: "v", images[0].sha256: "v"}
    group_of |= {kept[1].sha256: "t", images[1].sha256: "t"}
    drawn = splits(draw_val(images, kept, group_of=group_of))
    assert drawn["copy of old"] == "val"
    assert drawn["copy of k0"] == "train"


def test_images_that_look_the_same_under_two_labels_are_not_held_out() -> None:
    images = [*of_class("a", 5), *of_class("b", 5)]
    group_of = {images[i].sha256: f"{i % 5}" for i in range(9)}
    drawn = splits(draw_val(images, group_of=group_of))
    assert [name for name, split in drawn.items() if split == "val"] == ["a4", "b4"]
