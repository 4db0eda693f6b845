"""Corrected labels: an image has one answer, and stays on its side of the split."""

from __future__ import annotations

from jobs.datasets.corrections import corrected
from jobs.datasets.manifest import LabelledImage


def image(sha256: str, split: str, class_name: str) -> LabelledImage:
    return LabelledImage(sha256, 1, sha256, 8, 8, split, class_name)


OLD = [image("a", "train", "ant"), image("b", "val", "ant"), image("c", "val", "bee")]


def test_an_image_with_another_label_replaces_the_old_one_in_its_split() -> None:
    images, kept = corrected([image("b", "train", "bee"), image("d", "train", "ant")], OLD)
    assert [(i.sha256, i.split, i.class_name) for i in images] == [
        ("b", "val", "bee"),
        ("d", "train", "ant"),
    ]
    assert [i.sha256 for i in kept] == ["a", "c"]


def test_an_image_with_the_same_label_changes_nothing() -> None:
    images, kept = corrected([image("a", "train", "ant")], OLD)
    assert kept == OLD
    assert [i.split for i in images] == ["train"]
