"""Cached features: by image, in files of which any may be damaged or gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models_cache.durable import sha256_of_bytes
from models_cache.feature_cache import FeatureCache, FeatureKey

KEY = FeatureKey("squeezenet1_1", "0" * 64, "1" * 64, {"engine": "eager", "batch": 32})


def names(*numbers: int) -> list[str]:
    return [sha256_of_bytes(bytes([number])) for number in numbers]


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 4)


def test_images_of_two_versions_of_a_dataset_share_their_rows(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    assert cache.read(KEY, names(1, 2)) == {}
    cache.write(KEY, names(1, 2), rows(1, 2))
    found = cache.read(KEY, names(3, 2, 1))
    assert set(found) == set(names(1, 2))
    cache.write(KEY, names(3), rows(3))
    found = cache.read(KEY, names(3, 2, 1))
    assert torch.equal(torch.stack([found[name] for name in names(1, 2, 3)]), rows(1, 2, 3))


def test_every_part_of_the_key_separates_rows(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, names(1), rows(1))
    others = [
        replace(KEY, architecture="resnet18"),
        replace(KEY, weights_sha256="2" * 64),
        replace(KEY, preprocessing_digest="2" * 64),
        replace(KEY, numerics={**KEY.numerics, "engine": "another"}),
        replace(KEY, view="flip"),
        replace(KEY, decoder="another"),
    ]
    assert len({key.digest for key in [KEY, *others]}) == 1 + len(others)
    assert all(cache.read(key, names(1)) == {} for key in others)


def test_damaged_segment_costs_its_own_rows_alone(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, names(1), rows(1))
    (first,) = cache.segments(KEY)
    cache.write(KEY, names(2, 3), rows(2, 3))
    whole = first.read_bytes()
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x40
        first.write_bytes(bytes(flipped))
        found = cache.read(KEY, names(1, 2, 3))
        assert set(names(2, 3)) <= set(found) <= set(names(1, 2, 3))
        if names(1)[0] in found:  # the flip lies in what nobody reads
            assert torch.equal(found[names(1)[0]], rows(1)[0])
    first.write_bytes(b"")
    assert set(cache.read(KEY, names(1, 2, 3))) == set(names(2, 3))
    first.unlink()
    assert set(cache.read(KEY, names(1, 2, 3))) == set(names(2, 3))


def test_the_same_rows_written_twice_are_one_file(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, names(1, 2), rows(1, 2))
    cache.write(KEY, names(1, 2), rows(1, 2))
    assert len(cache.segments(KEY)) == 1
