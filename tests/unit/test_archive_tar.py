from __future__ import annotations

import gzip
import struct
import subprocess
import tarfile
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.datasets.archive import quick_check, read_archive
from jobs.datasets.errors import CorruptArchive
from jobs.datasets.limits import IngestLimits
from jobs.errors import DatasetError
from tests.abuse.case import Hostile
from tests.abuse.tars import (
    FILES,
    PLAIN,
    PLAIN_GNU,
    REFUSED,
    ZIPPED,
    checksummed,
    member,
    pax,
    record,
    with_bytes,
)
from tests.images import class_folders, tar_bytes

LIMITS = IngestLimits()


def read_all(path: Path, limits: IngestLimits = LIMITS) -> dict[str, bytes]:
    return {entry.name: b"".join(content) for entry, content in read_archive(path, limits)}


def code_of(tmp_path: Path, data: bytes, limits: IngestLimits = LIMITS) -> str:
    path = tmp_path / "upload"
    path.write_bytes(data)
    codes = []
    for stage in (lambda: quick_check(path, limits), lambda: read_all(path, limits)):
        started = time.monotonic()
        try:
            stage()
        except DatasetError as error:
            codes.append(error.code)
        assert time.monotonic() - started < 30  # a bomb would take minutes
    assert codes, "the archive was accepted"
    assert len(set(codes)) == 1
    return codes[0]


LONG = "long/" + "x" * 140 + "/" + "y" * 80 + ".jpg"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_hostile_tar_is_refused_with_its_code(case: Hostile, tmp_path: Path) -> None:
    assert code_of(tmp_path, case.build()) == case.code


def test_too_many_entries_are_refused_while_walking(tmp_path: Path) -> None:
    data = tar_bytes({f"a/{i}": b"" for i in range(20)})
    assert code_of(tmp_path, data, IngestLimits(max_entries=10)) == "too-many-entries"


def test_all_content_together_is_bounded(tmp_path: Path) -> None:
    data = tar_bytes({f"a/{i}": bytes(300_000) for i in range(4)})
    limits = IngestLimits(max_unpacked_bytes=500_000, max_entries=10)
    assert code_of(tmp_path, data, limits) == "archive-too-large"


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_dialect_is_read(tmp_path: Path, dialect: int, mode: str) -> None:
    files = {**FILES, LONG: b"long", "ä é/ü.jpg": b"accents"}
    path = tmp_path / "upload.zip"  # the name has no influence
    path.write_bytes(tar_bytes(files, mode, dialect))
    assert quick_check(path, LIMITS) == ("tar" if mode == "w" else "tar.gz")
    assert read_all(path) == files


def test_odd_owners_modes_and_times_are_of_no_interest(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(member("a/1", mode=0o6777, uid=0, mtime=2**33))
    assert read_all(path) == {"a/1": b""}


def gzip_of(*deflated: bytes) -> bytes:
    """Return a gzip of raw deflate blocks; it has no end, since nobody gets there."""
    return gzip.compress(b"")[:10] + b"".join(deflated)


EMPTY_BLOCK = b"\0\0\0\xff\xff"  # a stored deflate block without content
NO_BLOCK = b"\x07"  # of the type that does not exist


def checked_in_time(path: Path) -> str:
    started = time.monotonic()
    kind = quick_check(path, LIMITS)
    assert time.monotonic() - started < 30  # a bomb would take minutes
    return kind


def test_a_quick_check_stops_in_a_tar_that_has_no_files(tmp_path: Path) -> None:
    """Each folder has 1 MiB of extended header, in 7 KiB: 256 MiB, and damage at their end."""
    noise = np.random.default_rng(0).bytes(7 << 10).hex()
    headers = pax(record("comment", "x" * ((1 << 20) - 20 - len(noise)) + noise))
    folder = member("d", tarfile.DIRTYPE)[:512]
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [packer.compress(headers[: 512 + (1 << 20)] + folder) for _ in range(256)]
    path = tmp_path / "upload"
    path.write_bytes(b"".join(parts) + packer.compress(b"damaged!" * 64) + packer.flush())
    assert checked_in_time(path) == "tar.gz"
    with pytest.raises(CorruptArchive):
        read_all(path)


def test_a_quick_check_stops_in_a_gzip_that_unpacks_to_nothing(tmp_path: Path) -> None:
    empty = EMPTY_BLOCK * ((24 << 20) // len(EMPTY_BLOCK))
    path = tmp_path / "upload"
    for start in (b"", b"\0" + struct.pack("<HH", 1024, 1024 ^ 0xFFFF) + PLAIN_GNU[:1024]):
        path.write_bytes(gzip_of(start, empty, NO_BLOCK))
        assert checked_in_time(path) == "tar.gz"
        with pytest.raises(CorruptArchive):
            read_all(path)


def test_a_quick_check_of_headers_alone_ends_soon(tmp_path: Path) -> None:
    extended = pax(b"")[:512]
    headers = b"".join(extended * 7 + member(f"a/{i}")[:512] for i in range(20_000))
    path = tmp_path / "upload"
    path.write_bytes(gzip.compress(headers, 1))
    assert checked_in_time(path) == "tar.gz"


def test_gzip_members_without_content_are_refused(tmp_path: Path) -> None:
    empty = gzip.compress(b"") * 200_000
    for data in (empty, gzip.compress(PLAIN[:512]) + empty + gzip.compress(PLAIN[512:])):
        assert code_of(tmp_path, data) == "corrupt-archive"


def test_many_gzip_members_with_content_are_one_archive(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(30 << 20)
    plain = tar_bytes({"a/1.jpg": content})
    parts = [plain[i : i + (1 << 14)] for i in range(0, len(plain), 1 << 14)]
    path = tmp_path / "upload"
    path.write_bytes(b"".join(gzip.compress(part, 0) for part in parts))
    assert len(parts) > 1000
    assert read_all(path) == {"a/1.jpg": content}


def test_a_header_whose_checksum_counts_signed_bytes_is_read(tmp_path: Path) -> None:
    header = with_bytes(PLAIN_GNU, 0, "a/ü.jpg\0".encode())[:512]
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:])
    header = header[:148] + f"{signed + 8 * 32:06o}\0 ".encode() + header[156:]
    path = tmp_path / "upload"
    path.write_bytes(header + PLAIN_GNU[512:])
    assert read_all(path) == {"a/ü.jpg": b"x"}


def test_the_icon_of_a_folder_is_no_invalid_name_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(tar_bytes({"a/1.jpg": b"x", "a/Icon\r": b"y", "a/._Icon\r": b"z"}))
    assert list(read_all(path)) == ["a/1.jpg", "a/Icon\r", "a/._Icon\r"]


def test_several_gzip_members_and_zero_padding_are_one_archive(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    parts = [PLAIN[i : i + 100] for i in range(0, len(PLAIN), 100)]
    path.write_bytes(b"".join(gzip.compress(part) for part in parts) + bytes(1000))
    assert read_all(path) == FILES


def test_entries_that_are_not_read_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(ZIPPED)
    assert [entry.name for entry, _ in read_archive(path, LIMITS)] == list(FILES)


@pytest.mark.parametrize("options", [[], ["--format=ustar"], ["--format=posix"], ["-z"]])
@pytest.mark.parametrize("start", [".", "disc square"])
def test_the_tar_command_is_read(tmp_path: Path, options: list[str], start: str) -> None:
    files = class_folders(per_class=2)
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    path = tmp_path / "upload"
    command = ["tar", "-c", *options, "-f", str(path), *start.split()]
    try:
        subprocess.run(command, cwd=tmp_path / "in", check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no tar command")
    assert read_all(path) == files


@pytest.mark.parametrize("data", [tar_bytes({"a/1.jpg": b"x" * 700}), ZIPPED], ids=["tar", "gz"])
def test_a_tar_cut_at_any_byte_raises_only_our_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "upload"
    for length in range(min(len(data), 2048)):
        path.write_bytes(data[:length])
        with pytest.raises(DatasetError):
            read_all(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    base=st.sampled_from([PLAIN[:6000], ZIPPED, pax(record("path", "b/1.jpg")), PLAIN_GNU]),
    edits=st.lists(st.tuples(st.integers(0, 1200), st.binary(max_size=3)), min_size=1, max_size=8),
    repair=st.booleans(),
)
def test_a_damaged_tar_raises_only_our_errors(
    tmp_path: Path, base: bytes, edits: list[tuple[int, bytes]], repair: bool
) -> None:
    data = base
    for position, new in edits:
        position %= len(data)
        data = data[:position] + new + data[position + len(new) :]
    if repair and data[:2] != b"\x1f\x8b":
        data = checksummed(data[:512]) + data[512:]
    path = tmp_path / "upload"
    path.write_bytes(data)
    with suppress(DatasetError):
        quick_check(path, LIMITS)
    with suppress(DatasetError):
        assert sum(map(len, read_all(path).values())) < 1 << 20
