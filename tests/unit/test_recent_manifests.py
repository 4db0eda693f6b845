"""Manifests are parsed once, and few of them are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.datasets.manifest import LabelledImage, build_manifest
from models_cache.blobs import BlobStore
from models_cache.errors import BlobMissing
from service.manifests import RecentManifests


def stored(blobs: BlobStore, name: str, count: int) -> str:
    images = [
        LabelledImage(f"{name}{i}", 9, f"a/{name}{i}.jpg", 8, 8, "train", "a") for i in range(count)
    ]
    return build_manifest(images, {"a"}).store(blobs).sha256


def test_manifest_is_parsed_once_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    first, second, third = (stored(blobs, name, 40) for name in "xyz")
    recent = RecentManifests(blobs, most_images=100)
    kept = recent.get(first)
    assert len(kept.images) == 40
    recent.get(second)
    assert recent.get(first) is kept
    other = recent.get(third)  # the second one has to go
    blobs.local_path(second).unlink()
    assert recent.get(first) is kept
    assert recent.get(third) is other
    with pytest.raises(BlobMissing):
        recent.get(second)


def test_one_manifest_is_kept_whatever_its_size(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    sha256 = stored(blobs, "x", 40)
    recent = RecentManifests(blobs, most_images=10)
    assert recent.get(sha256) is recent.get(sha256)
