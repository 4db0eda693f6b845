"""Images with any number of labels: metadata, manifest, split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jobs.datasets.errors import AmbiguousLayout, InvalidMetadata
from jobs.datasets.label_sets import joined, separated
from jobs.datasets.layout import Layout, find_layout
from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest
from jobs.datasets.split import draw_val
from models_cache.artifacts import MULTILABEL
from models_cache.blobs import BlobStore
from models_cache.durable import sha256_of_bytes

IMAGES = ["1.jpg", "2.jpg", "3.jpg"]


def layout(**files: str) -> Layout:
    content = {name.replace("_", "."): text.encode() for name, text in files.items()}
    return find_layout(IMAGES, sorted(content), content.__getitem__, 100)


def image(number: int, labels: str, split: str = "") -> LabelledImage:
    sha256 = sha256_of_bytes(str(number).encode())
    return LabelledImage(sha256, 1, f"{number}.jpg", 8, 8, split, labels, several=True)


@pytest.mark.parametrize(
    "files",
    [
        {"metadata_csv": 'file_name,"labels"\n1.jpg,bee|insect\n2.jpg, insect | ant \n3.jpg,\n'},
        {
            "metadata_jsonl": '{"file_name": "1.jpg", "labels": ["insect", "bee", "bee"]}\n'
            '{"file_name": "2.jpg", "labels": "ant|insect"}\n{"file_name": "3.jpg", "labels": []}\n'
        },
    ],
)
def test_labels_are_sets_in_one_spelling(files: dict[str, str]) -> None:
    found = layout(**files)
    assert found.several
    spelt = {name: label.spelling for name, label in found.labels.items()}
    assert spelt == {"1.jpg": "bee|insect", "2.jpg": "ant|insect", "3.jpg": ""}


@pytest.mark.parametrize(
    "row",
    ['{"file_name": "1.jpg", "labels": 3}', '{"file_name": "1.jpg", "labels": ["a|b"]}',
     '{"file_name": "1.jpg", "labels": ["a", null]}', '{"file_name": "1.jpg", "labels": "a||b"}',
     '{"file_name": "1.jpg", "labels": [""]}'],
)  # fmt: skip
def test_labels_that_are_none_are_refused_with_their_row(row: str) -> None:
    with pytest.raises(InvalidMetadata) as caught:
        layout(metadata_jsonl=row + "\n")
    assert caught.value.problems[0]["row"] == 1


def test_one_label_and_several_do_not_mix() -> None:
    with pytest.raises(AmbiguousLayout):
        find_layout(
            ["train/1.jpg", "val/2.jpg"],
            ["train/metadata.csv", "val/metadata.csv"],
            lambda name: (
                f"file_name,label{'s' * name.startswith('val')}\n"
                f"{'2' if name.startswith('val') else '1'}.jpg,a\n".encode()
            ),
            100,
        )


def test_a_label_with_a_bar_is_one_label_in_a_column_label() -> None:
    found = layout(metadata_csv="file_name,label\n1.jpg,a|b\n")
    assert not found.several
    assert found.labels["1.jpg"].spelling == "a|b"


def test_manifest_holds_lists_and_comes_back(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    images = [image(1, "ant|insect", "train"), image(2, "", "train"), image(3, "bee", "val")]
    manifest = build_manifest(images, {"ant", "bee", "insect"})
    assert manifest.task == MULTILABEL
    again = Manifest.load(blobs, manifest.store(blobs).sha256)
    assert again == manifest
    assert again.digest == manifest.digest
    assert {entry.label for entry in again.images} == {(0, 2), (), (1,)}
    assert sorted(again.labelled(), key=lambda i: i.path) == images
    train = manifest.counts()["train"]
    assert train == {"images": 2, "per_class": {"ant": 1, "bee": 0, "insect": 1}}


def test_every_label_has_its_share_held_out_in_any_order() -> None:
    sets = [
        "person",
        "person|insect",
        "ant|insect",
        "bee|insect",
        "ant|bee|insect",
        "rare|person",
        "",
    ]
    images = [image(n, joined(separated(sets[n % len(sets)]))) for n in range(140)]
    drawn = draw_val(images)
    assert {i.sha256: i.split for i in draw_val(images[::-1])} == {i.sha256: i.split for i in drawn}
    totals: Counter[str] = Counter(name for i in drawn for name in i.names or ("none",))
    val = Counter(name for i in drawn if i.split == "val" for name in i.names or ("none",))
    for name, total in totals.items():
        assert 0.15 <= val[name] / total <= 0.25, name


def test_label_sets_that_occur_once_each_are_held_out_too() -> None:
    images = [image(n, joined({f"a{n % 5}", f"b{n % 7}"})) for n in range(35)]
    assert sum(i.split == "val" for i in draw_val(images)) >= 5
