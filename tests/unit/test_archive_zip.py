from __future__ import annotations

import io
import struct
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.datasets.archive import quick_check, read_archive
from jobs.datasets.errors import InvalidName
from jobs.datasets.limits import IngestLimits
from jobs.errors import DatasetError
from tests.images import class_folders, streamed_zip_bytes, zip_bytes

FILES = {"a/1.jpg": b"first picture", "a/2.jpg": b"second" * 50, "b/3.jpg": b""}
LIMITS = IngestLimits()
DEFLATED = zipfile.ZIP_DEFLATED


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


def named(*names: str | zipfile.ZipInfo, data: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo("x")
            if isinstance(name, str):
                info.filename = name  # the constructor would cut at NUL
            archive.writestr(info, data)
    return buffer.getvalue()


def moded(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def patched(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new, count)


def central(data: bytes) -> int:
    """Return where the central directory begins."""
    return int(struct.unpack_from("<I", data, data.rindex(b"PK\x05\x06") + 16)[0])


def with_field(data: bytes, position: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, position, value)
    return bytes(changed)


def overlapping(count: int) -> bytes:
    """Return a zip of which all entries share one compressed body (after D. Fifield, 2019)."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = raw.compress(bytes(1 << 20)) + raw.flush()
    crc = zlib.crc32(bytes(1 << 20))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(body), 1 << 20, 5, 0)
    out = local + b"00000" + body
    start = len(out)
    for i in range(count):
        out += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, len(body), 1 << 20, 5,
            0, 0, 0, 0, 0, 0,
        ) + f"{i:05d}".encode()  # fmt: skip
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(out) - start, start, 0)
    return out + end


def quoted(count: int) -> bytes:
    """Return a zip whose entries quote the next entry's header (the second construction there)."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = raw.compress(bytes(1 << 20)) + raw.flush()
    parts: list[tuple[bytes, int, int]] = []  # name, packed, size
    tail = b""
    packed, size, crc = len(kernel), 1 << 20, zlib.crc32(bytes(1 << 20))
    entries = []
    for i in reversed(range(count)):
        name = f"{i:05d}".encode()
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, packed, size, 5, 0) + name
        entries.append((name, packed, size, crc, local))
        quote = b"\x00" + struct.pack("<HH", len(local), len(local) ^ 0xFFFF)
        tail = local + tail
        packed, size = packed + len(quote) + len(local), size + len(local)
    del parts, tail
    body, places = b"", []
    for name, packed, size, crc, local in reversed(entries):
        if body:
            body += b"\x00" + struct.pack("<HH", len(local), len(local) ^ 0xFFFF)
        places.append((name, packed, size, crc, len(body)))
        body += local
    body += kernel
    directory = b"".join(
        struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, packed, size, 5,
            0, 0, 0, 0, 0, offset,
        ) + name
        for name, packed, size, crc, offset in places
    )  # fmt: skip
    return (
        body
        + directory
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    )


def lying_zip64() -> bytes:
    """Return a zip whose zip64 locator points somewhere else than directly before itself."""
    data = zip_bytes(FILES)
    end = data.rindex(b"PK\5\6")
    start, size = central(data), end - central(data)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    return data[:end] + record + b"gap!" + locator + data[end:]


def honest_zip64() -> bytes:
    data = zip_bytes(FILES)
    end = data.rindex(b"PK\5\6")
    start, size = central(data), end - central(data)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    saturated = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:end] + record + locator + saturated


PLAIN = zip_bytes(FILES)
PACKED = zip_bytes(FILES, DEFLATED)
BOMB = zip_bytes({"a/zeros.jpg": bytes(32 << 20)}, DEFLATED)

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "traversal": (lambda: named("../../etc/cron.d/x"), "path-traversal"),
    "backslash traversal": (lambda: named("..\\..\\x"), "path-traversal"),
    "inner traversal": (lambda: named("a/../../x"), "path-traversal"),
    "absolute": (lambda: named("/abs"), "absolute-path"),
    "drive": (lambda: named("C:\\w\\x.png"), "absolute-path"),
    "share": (lambda: named("\\\\srv\\s"), "absolute-path"),
    "two slashes": (lambda: named("//x"), "absolute-path"),
    "symlink": (lambda: named(moded("a/l", 0o120777), data=b"/etc/passwd"), "link-not-allowed"),
    "fifo": (lambda: named(moded("a/f", 0o010644)), "special-file"),
    "device": (lambda: named(moded("a/d", 0o060644)), "special-file"),
    "flat bomb": (lambda: BOMB, "archive-bomb"),
    "full overlap": (lambda: overlapping(100), "overlapping-entries"),
    "quoted overlap": (lambda: quoted(100), "overlapping-entries"),
    "zip64 elsewhere": (lying_zip64, "ambiguous-archive"),
    "two ends": (lambda: PLAIN + PLAIN[PLAIN.rindex(b"PK\5\6") :], "ambiguous-archive"),
    "end in comment": (
        lambda: with_field(PLAIN, len(PLAIN) - 2, "<H", 30) + b"PK\5\6" + bytes(26),
        "ambiguous-archive",
    ),
    "two archives": (lambda: PLAIN + PLAIN, "ambiguous-archive"),
    "prefix": (lambda: b"#!/bin/sh\nexit\n" + PLAIN, "ambiguous-archive"),
    "jpeg and zip": (lambda: b"\xff\xd8\xff\xe0" + bytes(99) + PLAIN, "ambiguous-archive"),
    "png and zip": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99) + PLAIN, "ambiguous-archive"),
    "trailing bytes": (lambda: PLAIN + b"more", "corrupt-archive"),
    "other local name": (lambda: patched(PLAIN, b"a/1.jpg", b"a/9.jpg", 1), "name-mismatch"),
    "overlong utf-8": (lambda: patched(named("a/zzz"), b"zzz", b"\xc0\xae."), "invalid-name"),
    "code page": (lambda: patched(named("a/zzz"), b"zzz", b"caf\xe9"[1:]), "invalid-name"),
    "nul in name": (lambda: patched(named("a/zzz"), b"zzz", b"z\0z"), "invalid-name"),
    "newline in name": (lambda: named("a/\n.jpg"), "invalid-name"),
    "escape in name": (lambda: named("a/\x1b[31m.jpg"), "invalid-name"),
    "right to left": (lambda: named("a/\u202egpj.exe"), "invalid-name"),
    "no width": (lambda: named("a\u200b/1.jpg"), "invalid-name"),
    "long part": (lambda: named("a/" + "x" * 300), "name-too-long"),
    "long path": (lambda: named("a/" * 20_000 + "x"), "name-too-long"),
    "deep path": (lambda: named("a/" * 17 + "x"), "name-too-long"),
    "empty name": (lambda: named("./."), "invalid-name"),
    "file and folder": (lambda: named("a", "a/b"), "path-conflict"),
    "folder and file": (lambda: named("a/b", "a"), "path-conflict"),
    "encrypted": (
        lambda: with_field(PLAIN, central(PLAIN) + 8, "<H", 1),
        "encrypted-archive",
    ),
    "strong encryption": (
        lambda: with_field(PLAIN, central(PLAIN) + 8, "<H", 64),
        "encrypted-archive",
    ),
    "bzip2": (lambda: zip_bytes(FILES, zipfile.ZIP_BZIP2), "unsupported-compression"),
    "lzma": (lambda: zip_bytes(FILES, zipfile.ZIP_LZMA), "unsupported-compression"),
    "deflate64": (
        lambda: with_field(PLAIN, central(PLAIN) + 10, "<H", 9),
        "unsupported-compression",
    ),
    "split archive": (
        lambda: with_field(PLAIN, len(PLAIN) - 18, "<H", 3),
        "corrupt-archive",
    ),
    "no entries": (lambda: zip_bytes({}), "empty-dataset"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_zip_is_refused_with_its_code(case: str, tmp_path: Path) -> None:
    build, code = REFUSED[case]
    if case == "no entries":
        path = tmp_path / "upload"
        path.write_bytes(build())
        with pytest.raises(DatasetError) as caught:
            quick_check(path, LIMITS)
        assert caught.value.code == code
        return
    assert code_of(tmp_path, build()) == code


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
