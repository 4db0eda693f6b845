"""Caches on disk stay within their bound, the longest unused going first."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jobs.housekeeping import bound_caches
from models_cache.pixels import PixelCache, PixelKey


def test_longest_unused_features_and_pixels_go_first(tmp_path: Path) -> None:
    features = tmp_path / "cache" / "features"
    features.mkdir(parents=True)
    for age, name in enumerate(("new", "middle", "old")):
        path = features / f"{name}.safetensors"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (10**9 - age, 10**9 - age))
    cache = PixelCache(tmp_path / "cache" / "pixels")
    keys = [PixelKey(f"{number:064d}", 8, "bilinear") for number in range(3)]
    for age, key in enumerate(keys):
        cache.write(key, [np.zeros((8, 8, 3), np.uint8)])
        os.utime(cache.path_of(key), (10**9 - age, 10**9 - age))
    size_bytes = cache.path_of(keys[0]).stat().st_size
    bound_caches(tmp_path, limit_bytes=8000)
    assert {path.stem for path in features.iterdir()} == {"new", "middle"}
    assert all(cache.path_of(key).exists() for key in keys)
    bound_caches(tmp_path, limit_bytes=int(size_bytes * 1.5 / 0.75))
    assert [cache.path_of(key).exists() for key in keys] == [True, False, False]


def test_what_a_killed_writer_left_goes_after_an_hour(tmp_path: Path) -> None:
    features = tmp_path / "cache" / "features"
    features.mkdir(parents=True)
    left, being_written = features / ".a.safetensors.1.tmp", features / ".b.safetensors.2.tmp"
    for path in (left, being_written):
        path.write_bytes(b"x")
    os.utime(left, (10**9, 10**9))
    bound_caches(tmp_path, limit_bytes=1 << 30)
    assert list(features.iterdir()) == [being_written]


def test_empty_data_folder_has_nothing_to_bound(tmp_path: Path) -> None:
    bound_caches(tmp_path, limit_bytes=0)
