"""Tar files that have to be refused, each made from a few lines and never committed."""

from __future__ import annotations

import gzip
import io
import tarfile

from tests.abuse.case import Hostile
from tests.images import tar_bytes

FILES = {"a/1.jpg": b"first picture", "a/2.jpg": b"second" * 500, "b/3.jpg": b""}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: int) -> bytes:
    """Return a tar of one member of any kind."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    for field, value in fields.items():
        setattr(info, field, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(info)
    return buffer.getvalue()


def checksummed(header: bytes) -> bytes:
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]


def with_bytes(data: bytes, position: int, new: bytes) -> bytes:
    """Change bytes of the first header and repair its checksum."""
    changed = data[:position] + new + data[position + len(new) :]
    return checksummed(changed[:512]) + changed[512:]


def pax(records: bytes, kind: bytes = b"x", declared: int | None = None) -> bytes:
    """Return a tar whose one file has an extended header with these bytes."""
    info = tarfile.TarInfo("pax")
    info.type = kind
    info.size = len(records) if declared is None else declared
    header = info.tobuf(tarfile.GNU_FORMAT)
    padded = records + bytes(-len(records) % 512)
    return header + padded + tar_bytes({"a/1.jpg": b"x"}, dialect=tarfile.USTAR_FORMAT)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest) + 3))
    return str(length).encode() + rest


PLAIN = tar_bytes(FILES)
ZIPPED = gzip.compress(PLAIN, mtime=0)
PLAIN_GNU = tar_bytes({"a/1.jpg": b"x"}, dialect=tarfile.GNU_FORMAT)
BOMB = gzip.compress(tar_bytes({f"a/{i}.jpg": bytes(8 << 20) for i in range(4)}), mtime=0)


REFUSED: tuple[Hostile, ...] = (
    Hostile("A01-tar", "traversal", lambda: tar_bytes({"../../x": b"x"}), "path-traversal"),
    Hostile("A02-tar", "absolute", lambda: tar_bytes({"/etc/x": b"x"}), "absolute-path"),
    Hostile(
        "A03-symlink", "symlink", lambda: member("a/l", tarfile.SYMTYPE, "/etc"), "link-not-allowed"
    ),
    Hostile(
        "A03-relative",
        "relative symlink",
        lambda: member("l", tarfile.SYMTYPE, "../../etc"),
        "link-not-allowed",
    ),
    Hostile(
        "A03-long",
        "long symlink",
        lambda: member("l", tarfile.SYMTYPE, "d/" * 2500),
        "link-not-allowed",
    ),
    Hostile(
        "A04-hardlink",
        "hardlink",
        lambda: member("a/l", tarfile.LNKTYPE, "/etc/passwd"),
        "link-not-allowed",
    ),
    Hostile("A05-fifo", "fifo", lambda: member("a/f", tarfile.FIFOTYPE), "special-file"),
    Hostile(
        "A05-character", "character device", lambda: member("a/f", tarfile.CHRTYPE), "special-file"
    ),
    Hostile("A05-block", "block device", lambda: member("a/f", tarfile.BLKTYPE), "special-file"),
    Hostile(
        "A05-contiguous", "contiguous", lambda: member("a/f", tarfile.CONTTYPE), "special-file"
    ),
    Hostile("A05-unknown", "unknown type", lambda: member("a/f", b"Z"), "special-file"),
    Hostile("A05-volume", "volume", lambda: member("a/f", b"V"), "special-file"),
    Hostile("A12-gnu", "gnu sparse", lambda: with_bytes(PLAIN_GNU, 156, b"S"), "sparse-file"),
    Hostile("A12-pax", "pax sparse", lambda: pax(record("GNU.sparse.major", "1")), "sparse-file"),
    Hostile(
        "A13-terabyte",
        "terabyte",
        lambda: with_bytes(PLAIN_GNU, 124, b"\x80" + (1 << 40).to_bytes(11, "big")),
        "entry-too-large",
    ),
    Hostile(
        "A13-negative",
        "negative size",
        lambda: with_bytes(PLAIN_GNU, 124, b"\xff" * 12),
        "corrupt-archive",
    ),
    Hostile(
        "A13-text",
        "size is text",
        lambda: with_bytes(PLAIN_GNU, 124, b"00000000z00\0"),
        "corrupt-archive",
    ),
    Hostile(
        "A13-signed",
        "signed size",
        lambda: with_bytes(PLAIN_GNU, 124, b"-0000000100\0"),
        "corrupt-archive",
    ),
    Hostile("A14-huge", "huge pax header", lambda: pax(b"", declared=10**10), "corrupt-archive"),
    Hostile(
        "A14-many",
        "many pax records",
        lambda: pax(record("comment", "") * 100_000)[: 1 << 20],
        "corrupt-archive",
    ),
    Hostile(
        "A14-2000", "2000 pax records", lambda: pax(record("comment", "") * 2000), "corrupt-archive"
    ),
    Hostile("A14-length-lies", "pax length lies", lambda: pax(b"99 path=a\n"), "corrupt-archive"),
    Hostile("A14-length-zero", "pax length zero", lambda: pax(b"0 path=a\n"), "corrupt-archive"),
    Hostile(
        "A14-negative-size",
        "pax negative size",
        lambda: pax(record("size", "-1")),
        "corrupt-archive",
    ),
    Hostile("A14-path", "pax path", lambda: pax(record("path", "../../etc/x")), "path-traversal"),
    Hostile("A14-nul", "pax nul in path", lambda: pax(record("path", "a\0b")), "invalid-name"),
    Hostile(
        "A14-global-path",
        "global path",
        lambda: pax(record("path", "b"), b"g"),
        "ambiguous-archive",
    ),
    Hostile(
        "A14-long-name",
        "long name",
        lambda: tar_bytes({"x/" * 600 + "y": b""}, dialect=tarfile.GNU_FORMAT),
        "name-too-long",
    ),
    Hostile(
        "A14-nested",
        "nested extended headers",
        lambda: b"".join([pax(record("comment", "a"))[:1024]] * 20) + PLAIN,
        "corrupt-archive",
    ),
    Hostile(
        "A20-tar-code-page",
        "code page name",
        lambda: with_bytes(PLAIN_GNU, 0, b"caf\xe9\0"),
        "invalid-name",
    ),
    Hostile(
        "A23-tar-checksum",
        "wrong checksum",
        lambda: PLAIN_GNU[:1024] + b"garbage!" * 64 + PLAIN_GNU[1024:],
        "corrupt-archive",
    ),
    Hostile(
        "A17-tar-duplicate", "duplicate", lambda: PLAIN_GNU[:1024] + PLAIN_GNU, "duplicate-entry"
    ),
    Hostile(
        "A21-tar", "file and folder", lambda: tar_bytes({"a": b"", "a/b": b""}), "path-conflict"
    ),
    Hostile("A16-two-tars", "two archives", lambda: PLAIN + PLAIN, "ambiguous-archive"),
    Hostile("A23-tar-no-end", "no end", lambda: PLAIN_GNU[:1024], "corrupt-archive"),
    Hostile(
        "A24-gzip-of-text",
        "gzip of text",
        lambda: gzip.compress(b"hello" * 400),
        "archive-type-unknown",
    ),
    Hostile("A16-gzip-tail", "gzip with tail", lambda: ZIPPED + b"more", "corrupt-archive"),
    Hostile(
        "A23-gzip-checksum",
        "gzip checksum",
        lambda: ZIPPED[:-8] + bytes(4) + ZIPPED[-4:],
        "corrupt-archive",
    ),
    Hostile("A11-gzip-bomb", "gzip bomb", lambda: BOMB, "archive-bomb"),
    Hostile("A11-bzip2", "bzip2", lambda: tar_bytes(FILES, "w:bz2"), "archive-type-unknown"),
    Hostile("A11-xz", "xz", lambda: tar_bytes(FILES, "w:xz"), "archive-type-unknown"),
)
