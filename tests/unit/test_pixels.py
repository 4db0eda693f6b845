from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest

from models_cache.pixels import PackedPixels, PixelCache, PixelKey
from tests.images import draw_shape

KEY = PixelKey("a" * 64, 256, "bilinear")
IMAGES = [draw_shape("disc", seed, (40 + seed, 30)) for seed in range(5)]


def test_images_come_back_in_their_order(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, iter(IMAGES))
    packed = cache.open(KEY)
    assert packed is not None
    assert len(packed) == len(IMAGES)
    for position, pixels in enumerate(IMAGES):
        np.testing.assert_array_equal(packed.image(position), pixels)


def test_views_are_read_only_and_survive_close(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, IMAGES)
    packed = cache.open(KEY)
    assert packed is not None
    view = packed.image(2)
    packed.close()
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, IMAGES[2])


def test_another_size_or_dataset_is_another_pack(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, IMAGES)
    assert cache.open(PixelKey("a" * 64, 224, "bilinear")) is None
    assert cache.open(PixelKey("b" * 64, 256, "bilinear")) is None


def test_an_empty_pack_opens(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, [])
    packed = cache.open(KEY)
    assert packed is not None
    assert len(packed) == 0


@pytest.mark.parametrize("damage", ["truncated", "footer", "index", "pixels", "empty"])
def test_a_damaged_pack_is_not_opened_but_removed(tmp_path: Path, damage: str) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, IMAGES)
    path = cache.path_of(KEY)
    data = bytearray(path.read_bytes())
    if damage == "footer":
        data[-1] ^= 1
    elif damage == "index":
        data[-40] ^= 1
    elif damage == "pixels":
        data[1000] ^= 1
    cut = {"truncated": len(data) - 50, "empty": 0}.get(damage, len(data))
    path.write_bytes(data[:cut])
    assert cache.open(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_pack_that_someone_reads_stays(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(KEY, IMAGES)
    with PackedPixels(cache.path_of(KEY)), cache.path_of(KEY).open("r+b") as file:
        file.write(bytes(100))
        file.flush()
        assert cache.open(KEY) is None
        assert cache.size_bytes(KEY) > 0


def test_a_pack_of_another_decoder_is_not_used(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    cache.write(replace(KEY, decoder="pillow1.0.1"), IMAGES)
    assert cache.open(KEY) is None
    assert PIL.__version__ in KEY.decoder


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def images() -> object:
        yield IMAGES[0]
        raise RuntimeError("decoder died")

    cache = PixelCache(tmp_path)
    with pytest.raises(RuntimeError, match="decoder died"):
        cache.write(KEY, images())  # type: ignore[arg-type]  # a generator of arrays
    assert list(tmp_path.iterdir()) == []


def test_eviction_takes_the_longest_unused_and_skips_the_open(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path)
    keys = [PixelKey(letter * 64, 256, "bilinear") for letter in "abc"]
    for age, key in enumerate(keys):
        cache.write(key, IMAGES)
        os.utime(cache.path_of(key), (1000 + age, 1000 + age))
    size_bytes = cache.size_bytes(keys[0])
    opened = cache.open(keys[0])  # now the most recently used, and in use
    assert opened is not None
    assert cache.evict(2 * size_bytes) == size_bytes
    assert [cache.size_bytes(key) > 0 for key in keys] == [True, False, True]
    assert cache.evict(0) == size_bytes
    assert [cache.size_bytes(key) > 0 for key in keys] == [True, False, False]
    opened.close()
    assert cache.evict(0) == size_bytes


def test_a_cache_without_a_folder_is_empty(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "missing")
    assert cache.open(KEY) is None
    assert cache.evict(0) == 0
