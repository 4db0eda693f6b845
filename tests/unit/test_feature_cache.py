"""Cached features: by image, in files of which any may be damaged or gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models_cache import faults, feature_cache
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


def holds(cache: FeatureCache, count: int) -> bool:
    found = cache.read(KEY, names(*range(count)))
    return len(found) == count and all(
        torch.equal(found[name], rows(number)[0])
        for number, name in enumerate(names(*range(count)))
    )


def test_many_small_segments_become_few(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    for number in range(30):
        cache.write(KEY, names(number), rows(number))
        assert len(cache.segments(KEY)) <= 8
    cache.write(replace(KEY, view="flip"), names(1), rows(5))
    assert holds(cache, 30)


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, names(*range(200)), rows(*range(200)))
    (large,) = cache.segments(KEY)
    monkeypatch.setattr(feature_cache, "_MOST_MERGED_BYTES", large.stat().st_size)
    before = large.stat().st_ino
    for number in range(200, 215):
        cache.write(KEY, names(number), rows(number))
    assert len(cache.segments(KEY)) <= 9
    assert large.stat().st_ino == before
    assert holds(cache, 215)


def test_damaged_segment_keeps_the_others_from_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, names(200), rows(200))
    (damaged,) = cache.segments(KEY)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    for number in range(12):
        cache.write(KEY, names(number), rows(number))
    assert len(cache.segments(KEY)) <= 8
    assert holds(cache, 12)


_WRITE = """
import sys, pathlib
from models_cache import faults
from models_cache.feature_cache import FeatureCache
from tests.unit.test_feature_cache import KEY, names, rows
folder = pathlib.Path(sys.argv[1])
faults.arm(sys.argv[2], folder / "faults")
number = int(sys.argv[3])
FeatureCache(folder / "features").write(KEY, names(number), rows(number))
"""


@pytest.mark.parametrize(
    "point",
    [
        "features_merge.before_fsync",
        "features_merge.before_rename",
        "features_merge.after_rename",
        "features_merge.before_unlink",
    ],
)
def test_killed_merge_loses_no_row_and_the_next_writer_ends_it(tmp_path: Path, point: str) -> None:
    cache = FeatureCache(tmp_path / "features")
    for number in range(8):
        cache.write(KEY, names(number), rows(number))
    killed = subprocess.run(
        [sys.executable, "-c", _WRITE, str(tmp_path), f"{point}=kill", "8"],
        check=False,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert killed.returncode == -signal.SIGKILL
    assert holds(cache, 9)
    cache.write(KEY, names(9), rows(9))
    assert len(cache.segments(KEY)) == 1
    assert holds(cache, 10)


def test_full_disk_while_merging_keeps_what_was_written(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    for number in range(8):
        cache.write(KEY, names(number), rows(number))
    try:
        faults.arm("features_merge.before_fsync=enospc", tmp_path / "once")
        cache.write(KEY, names(8), rows(8))
    finally:
        faults.arm("", tmp_path)
    assert holds(cache, 9)


def write_one_by_one(folder: Path, numbers: range) -> None:
    for number in numbers:
        FeatureCache(folder).write(KEY, names(number), rows(number))


def test_readers_and_writers_beside_a_merge_miss_no_row(tmp_path: Path) -> None:
    write_one_by_one(tmp_path, range(20))
    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write_one_by_one, tmp_path, range(n, n + 40)) for n in (20, 60)]
        readers = [
            threads.submit(lambda: all(holds(FeatureCache(tmp_path), 20) for _ in range(100)))
            for _ in range(2)
        ]
        assert all(reader.result(60) for reader in readers)
        for writer in writers:
            writer.result(60)
    assert holds(FeatureCache(tmp_path), 100)
