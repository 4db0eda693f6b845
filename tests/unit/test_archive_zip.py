from __future__ import annotations

import subprocess
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.datasets.archive import quick_check, read_archive
from jobs.datasets.errors import InvalidName
from jobs.datasets.limits import IngestLimits
from jobs.errors import DatasetError
from tests.abuse.case import Hostile
from tests.abuse.zips import (
    DEFLATED,
    FILES,
    PACKED,
    PLAIN,
    REFUSED,
    central,
    honest_zip64,
    moded,
    named,
    patched,
    with_field,
)
from tests.images import class_folders, streamed_zip_bytes, zip_bytes

LIMITS = IngestLimits()


def read_all(path: Path, limits: IngestLimits = LIMITS) -> dict[str, bytes]:
    return {entry.name: b"".join(content) for entry, content in read_archive(path, limits)}


def code_of(tmp_path: Path, data: bytes, limits: IngestLimits = LIMITS) -> str:
    """Return the code that an archive is refused with; both stages may refuse, and agree."""
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


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_hostile_zip_is_refused_with_its_code(case: Hostile, tmp_path: Path) -> None:
    if case.code == "empty-dataset":  # of the two stages only the first one says so
        path = tmp_path / "upload"
        path.write_bytes(case.build())
        with pytest.raises(DatasetError) as caught:
            quick_check(path, LIMITS)
        assert caught.value.code == case.code
        return
    assert code_of(tmp_path, case.build()) == case.code


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path, named("a/x.png", "a/x.png")) == "duplicate-entry"
    assert code_of(tmp_path, named("a/x.png", "a//./x.png")) == "duplicate-entry"


def test_a_name_in_a_code_page_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(patched(named("a/zzz"), b"zzz", b"f\x81r"))
    with pytest.raises(InvalidName) as caught:
        quick_check(path, LIMITS)
    assert "UTF-8" in str(caught.value)
    assert "7-Zip" in str(caught.value)
    assert ".tar" in str(caught.value)
    assert "rename" not in str(caught.value)


@pytest.mark.parametrize("name", ["Icon\r", "a/Icon\r", "__MACOSX/a/._Icon\r"])
def test_the_icon_of_a_folder_is_no_invalid_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(named("a/1.jpg", name))
    assert quick_check(path, LIMITS) == "zip"
    assert list(read_all(path)) == ["a/1.jpg", name]


@pytest.mark.parametrize(
    "name", ["Icon\r/1.jpg", "a/MyIcon\r", "a/Icon\r\r", "\n/Icon\r", "1.jpg\r"]
)
def test_other_names_with_a_carriage_return_are_invalid(tmp_path: Path, name: str) -> None:
    assert code_of(tmp_path, named(name)) == "invalid-name"


def test_too_many_entries_are_refused_from_the_end_record(tmp_path: Path) -> None:
    data = zip_bytes({f"a/{i}": b"" for i in range(20)})
    limits = IngestLimits(max_entries=10)
    assert code_of(tmp_path, data, limits) == "too-many-entries"


def test_a_low_entry_count_does_not_hide_entries(tmp_path: Path) -> None:
    data = zip_bytes({f"a/{i}": b"" for i in range(20)})
    for position in (len(data) - 14, len(data) - 12):
        data = with_field(data, position, "<H", 2)
    assert code_of(tmp_path, data, IngestLimits(max_entries=10)) == "too-many-entries"
    assert code_of(tmp_path, data) == "ambiguous-archive"


def test_sizes_over_the_limits_are_refused(tmp_path: Path) -> None:
    data = zip_bytes({"a/1": bytes(5000), "a/2": bytes(5000)})
    assert code_of(tmp_path, data, IngestLimits(max_entry_bytes=4999)) == "entry-too-large"
    assert code_of(tmp_path, data, IngestLimits(max_unpacked_bytes=9999)) == "archive-too-large"
    assert code_of(tmp_path, data, IngestLimits(max_directory_bytes=50)) == "archive-too-large"


@pytest.mark.parametrize("size", [1, 12, 14])
def test_a_size_that_lies_is_found_while_reading(tmp_path: Path, size: int) -> None:
    """The first entry is stored; in both headers its sizes become `size` instead of 13."""
    data = zip_bytes({"a/1.jpg": b"first picture" * 9}, DEFLATED)
    start = central(data)
    for position in (22, start + 24):
        data = with_field(data, position, "<I", size)
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_all(path)
    assert caught.value.code == "corrupt-archive"
    assert caught.value.facts["entry"] == "a/1.jpg"


@pytest.mark.parametrize("base", [PLAIN, PACKED])
def test_a_wrong_byte_of_content_is_found_by_its_checksum(tmp_path: Path, base: bytes) -> None:
    path = tmp_path / "upload"
    position = 30 + len("a/1.jpg") + 4
    path.write_bytes(with_field(base, position, "<B", base[position] ^ 0x20))
    with pytest.raises(DatasetError) as caught:
        read_all(path)
    assert caught.value.code == "corrupt-archive"
    assert caught.value.facts["entry"] == "a/1.jpg"


def test_a_wrong_descriptor_is_found(tmp_path: Path) -> None:
    data = streamed_zip_bytes(FILES)
    position = data.index(b"PK\x07\x08") + 4
    assert code_of(tmp_path, with_field(data, position, "<B", data[position] ^ 1)) == (
        "corrupt-archive"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0123456789",
        b"<html></html>",
        b"\xff\xd8\xff\xe0" + bytes(600),
        bytes(2000),
        b"BZh91AY",
        b"\xfd7zXZ\x00",
        b"7z\xbc\xaf\x27\x1c",
        b"\x28\xb5\x2f\xfd",
    ],
)
def test_what_is_no_archive_is_of_unknown_type(tmp_path: Path, data: bytes) -> None:
    assert code_of(tmp_path, data) == "archive-type-unknown"


@pytest.mark.parametrize(
    "data",
    [PLAIN, PACKED, streamed_zip_bytes(FILES), honest_zip64()],
    ids=["stored", "deflated", "streamed", "zip64"],
)
def test_every_way_of_writing_a_zip_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "upload.tar"  # the name has no influence
    path.write_bytes(data)
    assert quick_check(path, LIMITS) == "zip"
    assert read_all(path) == FILES


def test_zip64_entries_and_odd_attributes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(moded("a/setuid", 0o106777), b"1")
        archive.writestr(moded("a/nothing", 0), b"2")
        archive.mkdir("empty")
        with archive.open(zipfile.ZipInfo("a/large"), "w", force_zip64=True) as member:
            member.write(b"3")
        archive.comment = b"a comment without harm"
    assert read_all(path) == {"a/setuid": b"1", "a/nothing": b"2", "a/large": b"3"}


def test_backslashes_separate_parts(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(named("cats\\1.jpg"))
    assert list(read_all(path)) == ["cats/1.jpg"]


@pytest.mark.parametrize(
    ("options", "streamed"),
    [
        (["-r"], False),
        (["-r"], True),
        (["-r", "-0"], False),
        (["-r", "-0"], True),
        (["-r", "-X"], True),
        (["-r", "-fz"], False),  # streamed, it leaves the zip64 end record out: unzip fails as well
    ],
)
def test_the_zip_command_is_read(tmp_path: Path, options: list[str], streamed: bool) -> None:
    files = {**class_folders(per_class=2), "ä é/ü.jpg": b"accents"}
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    path = tmp_path / "upload"
    target = "-" if streamed else str(tmp_path / "made.zip")
    command = ["zip", "-q", *options, target, "."]
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path / "in",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            check=True,
            timeout=30,
        )
    except FileNotFoundError:
        pytest.skip("there is no zip command")
    path.write_bytes(done.stdout if streamed else (tmp_path / "made.zip").read_bytes())
    assert read_all(path) == files


@pytest.mark.shared
@pytest.mark.parametrize(("name", "files"), [("hymenoptera", 398), ("PennFudanPed", 512)])
def test_real_archives_are_read(shared: Path, name: str, files: int) -> None:
    path = shared / "data" / f"{name}.zip"
    assert quick_check(path, LIMITS) == "zip"
    with zipfile.ZipFile(path) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist() if not i.is_dir()}
    assert {entry.name: entry.size_bytes for entry, _ in read_archive(path, LIMITS)} == sizes
    assert len(sizes) == files


@pytest.mark.parametrize("data", [PACKED, streamed_zip_bytes(FILES)], ids=["seekable", "streamed"])
def test_a_zip_cut_at_any_byte_raises_only_our_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "upload"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DatasetError):
            quick_check(path, LIMITS)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    base=st.sampled_from([PLAIN, PACKED, streamed_zip_bytes(FILES), honest_zip64()]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_zip_raises_only_our_errors(
    tmp_path: Path, base: bytes, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(base)
    for position, value in edits:
        data[position % len(data)] = value
    path = tmp_path / "upload"
    path.write_bytes(data)
    with suppress(DatasetError):
        quick_check(path, LIMITS)
    with suppress(DatasetError):
        assert sum(map(len, read_all(path).values())) < 1 << 20
