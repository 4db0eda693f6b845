"""Zip files that have to be refused, each made from a few lines and never committed.

Overlapping entries: D. Fifield, "A better zip bomb", WOOT 2019.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from tests.abuse.case import Hostile
from tests.images import zip_bytes

FILES = {"a/1.jpg": b"first picture", "a/2.jpg": b"second" * 50, "b/3.jpg": b""}
DEFLATED = zipfile.ZIP_DEFLATED


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


REFUSED: tuple[Hostile, ...] = (
    Hostile("A01-parent", "traversal", lambda: named("../../etc/cron.d/x"), "path-traversal"),
    Hostile("A01-backslash", "backslash traversal", lambda: named("..\\..\\x"), "path-traversal"),
    Hostile("A01-inner", "inner traversal", lambda: named("a/../../x"), "path-traversal"),
    Hostile("A02-root", "absolute", lambda: named("/abs"), "absolute-path"),
    Hostile("A02-drive", "drive", lambda: named("C:\\w\\x.png"), "absolute-path"),
    Hostile("A02-share", "share", lambda: named("\\\\srv\\s"), "absolute-path"),
    Hostile("A02-two-slashes", "two slashes", lambda: named("//x"), "absolute-path"),
    Hostile(
        "A06-symlink",
        "symlink",
        lambda: named(moded("a/l", 0o120777), data=b"/etc/passwd"),
        "link-not-allowed",
    ),
    Hostile("A05-zip-fifo", "fifo", lambda: named(moded("a/f", 0o010644)), "special-file"),
    Hostile("A05-zip-device", "device", lambda: named(moded("a/d", 0o060644)), "special-file"),
    Hostile("A08-flat", "flat bomb", lambda: BOMB, "archive-bomb"),
    Hostile("A09-full", "full overlap", lambda: overlapping(100), "overlapping-entries"),
    Hostile("A09-quoted", "quoted overlap", lambda: quoted(100), "overlapping-entries"),
    Hostile("A16-zip64", "zip64 elsewhere", lying_zip64, "ambiguous-archive"),
    Hostile(
        "A16-two-ends",
        "two ends",
        lambda: PLAIN + PLAIN[PLAIN.rindex(b"PK\5\6") :],
        "ambiguous-archive",
    ),
    Hostile(
        "A16-comment",
        "end in comment",
        lambda: with_field(PLAIN, len(PLAIN) - 2, "<H", 30) + b"PK\5\6" + bytes(26),
        "ambiguous-archive",
    ),
    Hostile("A16-two-archives", "two archives", lambda: PLAIN + PLAIN, "ambiguous-archive"),
    Hostile("A16-prefix", "prefix", lambda: b"#!/bin/sh\nexit\n" + PLAIN, "ambiguous-archive"),
    Hostile(
        "A25-jpeg",
        "jpeg and zip",
        lambda: b"\xff\xd8\xff\xe0" + bytes(99) + PLAIN,
        "ambiguous-archive",
    ),
    Hostile(
        "A25-png",
        "png and zip",
        lambda: b"\x89PNG\r\n\x1a\n" + bytes(99) + PLAIN,
        "ambiguous-archive",
    ),
    Hostile("A16-tail", "trailing bytes", lambda: PLAIN + b"more", "corrupt-archive"),
    Hostile(
        "A17-local-name",
        "other local name",
        lambda: patched(PLAIN, b"a/1.jpg", b"a/9.jpg", 1),
        "name-mismatch",
    ),
    Hostile(
        "A20-overlong",
        "overlong utf-8",
        lambda: patched(named("a/zzz"), b"zzz", b"\xc0\xae."),
        "invalid-name",
    ),
    Hostile(
        "A20-code-page",
        "code page",
        lambda: patched(named("a/zzz"), b"zzz", b"caf\xe9"[1:]),
        "invalid-name",
    ),
    Hostile(
        "A20-nul", "nul in name", lambda: patched(named("a/zzz"), b"zzz", b"z\0z"), "invalid-name"
    ),
    Hostile("A20-newline", "newline in name", lambda: named("a/\n.jpg"), "invalid-name"),
    Hostile("A20-escape", "escape in name", lambda: named("a/\x1b[31m.jpg"), "invalid-name"),
    Hostile("A20-bidi", "right to left", lambda: named("a/\u202egpj.exe"), "invalid-name"),
    Hostile("A20-zero-width", "no width", lambda: named("a\u200b/1.jpg"), "invalid-name"),
    Hostile("A20-long-part", "long part", lambda: named("a/" + "x" * 300), "name-too-long"),
    Hostile("A20-long-path", "long path", lambda: named("a/" * 20_000 + "x"), "name-too-long"),
    Hostile("A20-deep", "deep path", lambda: named("a/" * 17 + "x"), "name-too-long"),
    Hostile("A20-empty", "empty name", lambda: named("./."), "invalid-name"),
    Hostile("A21-file-first", "file and folder", lambda: named("a", "a/b"), "path-conflict"),
    Hostile("A21-folder-first", "folder and file", lambda: named("a/b", "a"), "path-conflict"),
    Hostile(
        "A22-encrypted",
        "encrypted",
        lambda: with_field(PLAIN, central(PLAIN) + 8, "<H", 1),
        "encrypted-archive",
    ),
    Hostile(
        "A22-strong",
        "strong encryption",
        lambda: with_field(PLAIN, central(PLAIN) + 8, "<H", 64),
        "encrypted-archive",
    ),
    Hostile(
        "A22-bzip2", "bzip2", lambda: zip_bytes(FILES, zipfile.ZIP_BZIP2), "unsupported-compression"
    ),
    Hostile(
        "A22-lzma", "lzma", lambda: zip_bytes(FILES, zipfile.ZIP_LZMA), "unsupported-compression"
    ),
    Hostile(
        "A22-deflate64",
        "deflate64",
        lambda: with_field(PLAIN, central(PLAIN) + 10, "<H", 9),
        "unsupported-compression",
    ),
    Hostile(
        "A22-split",
        "split archive",
        lambda: with_field(PLAIN, len(PLAIN) - 18, "<H", 3),
        "corrupt-archive",
    ),
    Hostile("A10-no-entries", "no entries", lambda: zip_bytes({}), "empty-dataset"),
)
