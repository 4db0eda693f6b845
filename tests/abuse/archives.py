"""A of the catalogue: archives."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
import warnings
import zipfile

from tests.abuse import tars, zips
from tests.abuse.case import ACCEPTED, Archive, Build, Case, Hostile, refused, rejected
from tests.images import class_folders, shape_bytes, streamed_zip_bytes, tar_bytes, zip_bytes

_UNKNOWN = "archive-type-unknown"


class Canary:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("canary-executed", "w")


def healthy(first_seed: int = 0) -> dict[str, bytes]:
    """Return the files of a small data set that is as it should be."""
    return class_folders(per_class=4, first_seed=first_seed)


def _status(code: str) -> int:
    return 415 if code == _UNKNOWN else 422


def _hostile(case: Hostile) -> Case:
    outcome = refused(_status(case.code), case.code)
    return Case(case.id, case.what, Archive(case.build), outcome)


def _now(number: str, what: str, build: Build, code: str) -> Case:
    return _hostile(Hostile(number, what, build, code))


def _later(number: str, what: str, build: Build, code: str, *finds: str) -> Case:
    return Case(number, what, Archive(build), rejected(code), 30.0, frozenset(finds))


def _fine(number: str, what: str, build: Build, *finds: str) -> Case:
    return Case(number, what, Archive(build), ACCEPTED, 30.0, frozenset(finds))


def _zip_of(files: dict[str, bytes], modes: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zips.moded(name, modes.get(name, 0o644)), data)
    return buffer.getvalue()


def _twice(first: str, second: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return zips.named(first, second)


def _renamed(old: str, new: str) -> dict[str, bytes]:
    return {name.replace(old, new): data for name, data in healthy().items()}


def _with(**more: bytes) -> bytes:
    return zip_bytes({**healthy(), **more})


def _odd_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, (name, data) in enumerate(healthy().items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), 0o6777, 0
            info.mtime = (0, 2**33, -(2**31))[number % 3]
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _many_entries(count: int, declared: int | None = None) -> bytes:
    """Return a zip of empty files, made without the cost of `zipfile`."""
    names = [b"a/%07d" % number for number in range(count)]
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 9, 0)
    body = b"".join(local + name for name in names)
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 9, 0, 0, 0, 0, 0, at)
        + name
        for at, name in zip(range(0, len(body), len(local) + 9), names, strict=True)
    )
    told = min(count, 65535) if declared is None else declared
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, told, told, len(directory), len(body), 0)
    return body + directory + end


def _wrong_byte(data: bytes, position: int) -> bytes:
    return zips.with_field(data, position, "<B", data[position] ^ 0x20)


def _size_lies() -> bytes:
    data = zip_bytes(healthy(), zips.DEFLATED)
    for position in (22, zips.central(data) + 24):
        data = zips.with_field(data, position, "<I", 7)
    return data


def _cut(percent: int) -> Build:
    def build() -> bytes:
        data = zip_bytes(healthy())
        return data[: len(data) * percent // 100]

    return build


def _wrong_descriptor() -> bytes:
    data = streamed_zip_bytes(healthy())
    return _wrong_byte(data, data.index(b"PK\x07\x08") + 4)


_DUPLICATES = (
    _now(
        "A17-duplicate", "one name twice", lambda: _twice("a/x.png", "a/x.png"), "duplicate-entry"
    ),
    _now(
        "A17-spelling",
        "one name in two spellings",
        lambda: _twice("a/x.png", "a//./x.png"),
        "duplicate-entry",
    ),
)

_SIZES = (
    _now("A15-many", "60,000 empty entries", lambda: _many_entries(60_000), "too-many-entries"),
    _now(
        "A15-low-count",
        "60,000 entries, 2 declared",
        lambda: _many_entries(60_000, 2),
        "too-many-entries",
    ),
    _now(
        "A15-few-declared",
        "20 entries, 2 declared",
        lambda: _many_entries(20, 2),
        "ambiguous-archive",
    ),
    _now(
        "A08-large",
        "one entry of 96 MiB of zeros",
        lambda: zip_bytes({"a/0.jpg": bytes(96 << 20)}, zips.DEFLATED),
        "archive-bomb",
    ),
    _now(
        "A09-200",
        "200 quoted entries in 20 KB",
        lambda: zips.quoted(200),
        "overlapping-entries",
    ),
    _now(
        "A09-1000",
        "1,000 entries share one body",
        lambda: zips.overlapping(1000),
        "overlapping-entries",
    ),
)

_KINDS = (
    _now("A24-empty", "nothing", bytes, _UNKNOWN),
    _now("A24-ten-bytes", "ten bytes", lambda: b"0123456789", _UNKNOWN),
    _now("A24-random", "noise", lambda: random.Random(3).randbytes(5000), _UNKNOWN),  # noqa: S311
    _now("A24-html", "HTML", lambda: b"<html><script>alert(1)</script>", _UNKNOWN),
    _now("A24-pdf", "PDF", lambda: b"%PDF-1.7\n" + bytes(600), _UNKNOWN),
    _now("A24-image", "a JPEG alone", lambda: shape_bytes("disc"), _UNKNOWN),
    _now("A24-zeros", "zeros", lambda: bytes(4096), _UNKNOWN),
    _now("A11-zstd", "zstd", lambda: b"\x28\xb5\x2f\xfd" + bytes(600), _UNKNOWN),
    _now("A11-7z", "7z", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(600), _UNKNOWN),
    _now("A11-rar", "rar", lambda: b"Rar!\x1a\x07\x01\x00" + bytes(600), _UNKNOWN),
    _now("IA08-pickle", "a pickle", lambda: pickle.dumps(Canary()), _UNKNOWN),
    _now("D03-npy", "a single .npy", lambda: b"\x93NUMPY\1\0v\0" + bytes(600), _UNKNOWN),
    _later(
        "IA08-checkpoint",
        "a torch checkpoint with code in it",
        lambda: zip_bytes({"archive/data.pkl": pickle.dumps(Canary()), "archive/version": b"3"}),
        "empty-dataset",
    ),
    _fine(
        "IA08-inside",
        "pickles beside images",
        lambda: _with(**{"disc/model.pkl": pickle.dumps(Canary()), "disc/m.pt": b"\x80\4."}),
    ),
)

_DAMAGE = (
    _now("A23-cut-1", "cut at 1 %", _cut(1), "corrupt-archive"),
    _now("A23-cut-50", "cut at 50 %", _cut(50), "corrupt-archive"),
    _now("A23-cut-99", "cut at 99 %", _cut(99), "corrupt-archive"),
    _now("A23-no-end", "no end record", lambda: zip_bytes(healthy())[:-22], "corrupt-archive"),
    _now("A23-descriptor", "a wrong descriptor", _wrong_descriptor, "corrupt-archive"),
    _later(
        "A23-crc",
        "a wrong byte of content",
        lambda: _wrong_byte(zip_bytes(healthy()), 400),
        "corrupt-archive",
        "corrupt-archive",
    ),
    _later("A23-size", "a size that is too small", _size_lies, "corrupt-archive"),
)

_NAMES = (
    _later(
        "A18-case",
        "Disc and disc",
        lambda: zip_bytes({**healthy(), "Disc/9.jpg": shape_bytes("disc", 9)}),
        "class-collision",
    ),
    _later(
        "A18-unicode",
        "é in two forms",
        lambda: zip_bytes(
            {**_renamed("disc", "caf\u00e9"), "cafe\u0301/9.jpg": shape_bytes("disc")}
        ),
        "class-collision",
    ),
    _later(
        "A18-dot",
        "disc. and disc",
        lambda: zip_bytes({**healthy(), "disc./9.jpg": shape_bytes("disc", 9)}),
        "class-collision",
    ),
    _later(
        "A19-con", "class CON", lambda: zip_bytes(_renamed("disc", "CON")), "reserved-class-name"
    ),
    _later(
        "A19-lpt",
        "class lpt1.old",
        lambda: zip_bytes(_renamed("disc", "lpt1.old")),
        "reserved-class-name",
    ),
    _fine(
        "A19-files", "files called NUL", lambda: _with(**{"disc/NUL.jpg": shape_bytes("disc", 77)})
    ),
    _fine("A19-signs", "class a<>|?*", lambda: zip_bytes(_renamed("disc", "a<>|?*"))),
    _fine(
        "A26-junk",
        "what systems leave behind",
        lambda: _with(
            **{
                "__MACOSX/disc/._000.jpg": b"\0\5\x16\7",
                "disc/.DS_Store": b"Bud1",
                "disc/Thumbs.db": b"x",
                ".git/config": b"[core]",
            }
        ),
    ),
    _fine("A27-wrapped", "one folder around all", lambda: zip_bytes(class_folders(prefix="data/"))),
    _later(
        "A27-mixed",
        "images at two depths",
        lambda: _with(**{"disc/more/9.jpg": shape_bytes("disc", 9)}),
        "ambiguous-layout",
    ),
    _later(
        "A27-flat",
        "no folders",
        lambda: zip_bytes({"1.jpg": shape_bytes("disc")}),
        "ambiguous-layout",
    ),
)

_CONTENT = (
    _fine(
        "A07-modes",
        "setuid and mode 000",
        lambda: _zip_of(healthy(), {"disc/000.jpg": 0o106777, "square/000.jpg": 0o100000}),
    ),
    _fine("A07-owners", "owners and times of another world", _odd_tar),
    _later(
        "A10-nested",
        "zip in zip in zip",
        lambda: zip_bytes({"a.zip": zip_bytes({"b.zip": zip_bytes(healthy())})}),
        "empty-dataset",
    ),
    _fine(
        "A10-beside",
        "archives beside images",
        lambda: _with(**{"disc/more.zip": zip_bytes(healthy()), "disc/x.tar.gz": tars.ZIPPED}),
    ),
    _fine("A24-names", "a tar.gz is told by its bytes", lambda: tar_bytes(healthy(), "w:gz")),
    _fine("A23-streamed", "sizes behind the data", lambda: streamed_zip_bytes(healthy())),
)

CASES = (
    *map(_hostile, (*zips.REFUSED, *tars.REFUSED)),
    *_DUPLICATES,
    *_SIZES,
    *_KINDS,
    *_DAMAGE,
    *_NAMES,
    *_CONTENT,
)
