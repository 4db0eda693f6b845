"""Uploads in parts on a real disk: repeated, out of order, wrong, ended."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from jobs.store.tables import DEFAULT_PROJECT
from service import upload_parts
from service.errors import UploadEnded, UploadMismatch, UploadNotFound
from service.upload_parts import Announced, Outcome, PartialUpload
from service.uploads import LEFTOVER_SECONDS, Upload

FILE = b"first part|second part"


def announced(file_name: str, size_bytes: int) -> Announced:
    return Announced(DEFAULT_PROJECT, file_name, size_bytes, 1_700_000_000)


@pytest.fixture
def upload(tmp_path: Path) -> PartialUpload:
    return upload_parts.begin(tmp_path, "upload_1", announced("photos.zip", len(FILE)))


def add(upload: PartialUpload, data: bytes) -> str:
    path = upload.folder.parent / "received.tmp"
    path.write_bytes(data)
    received = Upload(path, hashlib.sha256(data).hexdigest(), len(data), None)
    try:
        return upload_parts.add_part(upload, received)
    finally:
        path.unlink(missing_ok=True)


def test_parts_become_the_file_in_the_order_given(upload: PartialUpload, tmp_path: Path) -> None:
    second, first = add(upload, FILE[10:]), add(upload, FILE[:10])
    again = upload_parts.find(tmp_path, upload.id, DEFAULT_PROJECT)  # as after a restart
    assert upload_parts.parts_of(again) == {first: 10, second: len(FILE) - 10}
    md5 = hashlib.md5(FILE, usedforsecurity=False).hexdigest()
    whole = upload_parts.assemble(again, [first, second], tmp_path / "whole", md5.upper())
    assert whole.path.read_bytes() == FILE
    assert whole.sha256 == hashlib.sha256(FILE).hexdigest()
    assert whole.file_name == "photos.zip"


def test_a_part_that_is_sent_again_is_the_same(upload: PartialUpload) -> None:
    first = add(upload, FILE[:10])
    assert add(upload, FILE[:10]) == first
    assert upload_parts.parts_of(upload) == {first: 10}


def test_equal_parts_may_stand_at_several_places(tmp_path: Path) -> None:
    upload = upload_parts.begin(tmp_path, "upload_2", announced("zeros", 8))
    part = add(upload, b"zero")
    whole = upload_parts.assemble(upload, [part, part], tmp_path / "whole", None)
    assert whole.path.read_bytes() == b"zerozero"


def test_parts_that_are_not_the_announced_file_are_refused(
    upload: PartialUpload, tmp_path: Path
) -> None:
    first = add(upload, FILE[:10])
    with pytest.raises(UploadMismatch, match="23 bytes in parts, 22 were announced"):
        add(upload, FILE[10:] + b"!")
    with pytest.raises(UploadMismatch, match="10 bytes in parts"):
        upload_parts.assemble(upload, [first], tmp_path / "whole", None)
    with pytest.raises(UploadMismatch, match="1 of its parts have not arrived"):
        upload_parts.assemble(upload, [first, "part_../../secret"], tmp_path / "whole", None)
    second = add(upload, FILE[10:])
    with pytest.raises(UploadMismatch, match="MD5"):
        upload_parts.assemble(upload, [first, second], tmp_path / "whole", "0" * 32)


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_an_ended_upload_has_no_parts_and_takes_none(
    upload: PartialUpload, tmp_path: Path, status: str
) -> None:
    first = add(upload, FILE[:10])
    upload_parts.end(upload, Outcome(status))  # type: ignore[arg-type]
    again = upload_parts.find(tmp_path, upload.id, DEFAULT_PROJECT)
    assert upload_parts.parts_of(again) == {}
    with pytest.raises(UploadEnded, match=status):
        add(again, FILE[:10])
    with pytest.raises(UploadEnded, match=status):
        upload_parts.assemble(again, [first], tmp_path / "whole", None)


def test_an_upload_expires_an_hour_after_its_last_part(upload: PartialUpload) -> None:
    os.utime(upload.folder, (1000, 1000))
    assert upload.expires_at == 1000 + LEFTOVER_SECONDS
    add(upload, FILE[:10])
    os.utime(upload.folder, (1000, 1000))
    add(upload, FILE[:10])
    assert upload.expires_at > 1000 + LEFTOVER_SECONDS


@pytest.mark.parametrize("upload_id", ["upload_9", "received.tmp", "."])
def test_what_is_no_upload_is_not_found(tmp_path: Path, upload_id: str) -> None:
    (tmp_path / "received.tmp").write_bytes(b"a file")
    with pytest.raises(UploadNotFound):
        upload_parts.find(tmp_path, upload_id, DEFAULT_PROJECT)
