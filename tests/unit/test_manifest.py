from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest, image_id
from models_cache.blobs import BlobStore
from models_cache.durable import canonical_json, sha256_of_bytes
from models_cache.errors import BlobCorrupt


def images(splits: tuple[str, ...] = ("train", "val")) -> list[LabelledImage]:
    return [
        LabelledImage(sha256_of_bytes(f"{split}{name}{i}".encode()), 9, f"{i}", 8, 6, split, name)
        for split in splits
        for name in ("bees", "ants")
        for i in range(3)
    ]


def test_classes_and_images_have_one_order() -> None:
    manifest = build_manifest(images()[::-1], ["bees", "ants"])
    assert manifest == build_manifest(images(), ["ants", "bees"])
    assert manifest.classes == ("ants", "bees")
    keys = [(image.split, image.label, image.sha256) for image in manifest.images]
    assert keys == sorted(keys)


def test_a_stored_manifest_is_canonical_and_comes_back(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    manifest = build_manifest(images(), ["bees", "ants"])
    blob = manifest.store(blobs)
    assert Manifest.load(blobs, blob.sha256) == manifest
    stored = blobs.read(blob.sha256)
    assert stored == canonical_json(json.loads(stored))
    assert json.loads(stored)["format"] == 1


def test_digest_covers_content_splits_and_labels_and_not_names() -> None:
    base = images()
    digest = build_manifest(base, ["ants", "bees"]).digest
    renamed = [LabelledImage(i.sha256, 9, "other", 8, 6, i.split, i.class_name) for i in base]
    assert build_manifest(renamed, ["ants", "bees"]).digest == digest
    assert build_manifest(base[1:], ["ants", "bees"]).digest != digest
    assert build_manifest(images(("train", "test")), ["ants", "bees"]).digest != digest
    assert build_manifest(base, ["ants", "bees", "wasps"]).digest != digest


def test_counts_tell_each_split_and_class() -> None:
    manifest = build_manifest(images(), ["ants", "bees"])
    expected = {"images": 6, "per_class": {"ants": 3, "bees": 3}}
    assert manifest.counts() == {"train": expected, "val": expected}
    assert "test" in build_manifest(images(("train", "test")), ["ants", "bees"]).counts()


def test_ids_are_stable_and_unique() -> None:
    manifest = build_manifest(images(), ["ants", "bees"])
    assert len({image.id for image in manifest.images}) == 12
    first = manifest.images[0]
    assert first.id == image_id(first.split, "ants", first.sha256)
    larger = build_manifest(images(), ["aardvarks", "ants", "bees"])
    assert {image.id for image in larger.images} == {image.id for image in manifest.images}


def test_a_next_version_takes_images_over_unchanged() -> None:
    manifest = build_manifest(images(), ["ants", "bees"])
    assert build_manifest(manifest.labelled(), manifest.classes) == manifest


def test_classes_of_a_parent_keep_their_index_whatever_is_added() -> None:
    manifest = build_manifest(images(), ["wasps", "aphids", "ants", "bees"], ("ants", "bees"))
    assert manifest.classes == ("ants", "bees", "aphids", "wasps")
    again = build_manifest(manifest.labelled(), [*manifest.classes, "aardvarks"], manifest.classes)
    assert again.classes == (*manifest.classes, "aardvarks")


def test_a_changed_manifest_is_not_loaded(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    blob = build_manifest(images(), ["bees", "ants"]).store(blobs)
    blobs.local_path(blob.sha256).write_bytes(b"{}")
    with pytest.raises(BlobCorrupt):
        Manifest.load(blobs, blob.sha256)
