"""The blob store on a real disk: idempotent, checked, and healed by the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from models_cache import faults
from models_cache.blobs import BlobStore
from models_cache.durable import sha256_of_bytes
from models_cache.errors import (
    BlobCorrupt,
    BlobMissing,
    InsufficientStorage,
)

DATA = b"some bytes of an image"


def _file(folder: Path, data: bytes = DATA) -> Path:
    path = folder / "source"
    path.write_bytes(data)
    return path


def test_same_bytes_are_stored_once_however_they_come(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    first = store.put_bytes(DATA)
    assert store.put_file(_file(tmp_path)) == first
    store.put_files({first.sha256: _file(tmp_path)})
    assert not (tmp_path / "source").exists()
    assert store.read(first.sha256) == DATA
    assert len(list((tmp_path / "blobs").glob("??/*"))) == 1


@pytest.mark.parametrize("damaged", [b"", DATA[:-1], b"X" * len(DATA)])
def test_damaged_blob_is_refused_and_healed_by_the_same_bytes(
    tmp_path: Path, damaged: bytes
) -> None:
    store = BlobStore(tmp_path / "blobs")
    blob = store.put_bytes(DATA)
    store.local_path(blob.sha256).write_bytes(damaged)
    with pytest.raises(BlobCorrupt):
        store.verify(blob.sha256)
    assert store.put_file(_file(tmp_path)) == blob
    assert store.read(blob.sha256) == DATA


def test_name_that_is_no_hash_never_becomes_a_path(tmp_path: Path) -> None:
    with pytest.raises(BlobMissing):
        BlobStore(tmp_path).local_path("../../etc/passwd")


@pytest.mark.parametrize("point", ["blob.before_fsync", "blob.before_rename"])
def test_full_disk_is_told_as_such_and_nothing_is_half_stored(tmp_path: Path, point: str) -> None:
    store = BlobStore(tmp_path / "blobs")
    try:
        faults.arm(f"{point}=enospc", tmp_path / "once")
        with pytest.raises(InsufficientStorage):
            store.put_file(_file(tmp_path))
    finally:
        faults.arm("", tmp_path)
    assert not store.local_path(sha256_of_bytes(DATA)).exists()
    store.put_file(_file(tmp_path))
