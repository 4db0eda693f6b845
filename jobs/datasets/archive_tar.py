"""Tar archives, plain or gzipped: headers parsed by hand, entries streamed in one pass.

Only regular files and folders exist. Links, devices, sparse files and everything unknown are
refused, extended headers are bounded, and what counts is the effective name. The standard
library's reader is not used: its filters were bypassed and its header loop hung more than once.
Source: POSIX.1-2017 pax, ustar interchange format; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.datasets.archive_names import NameRegister, decode_name
from jobs.datasets.archive_stream import TarStream
from jobs.datasets.errors import (
    AmbiguousArchive,
    CorruptArchive,
    EntryTooLarge,
    LinkNotAllowed,
    NameTooLong,
    SparseFile,
    SpecialFile,
    printable,
)
from jobs.datasets.limits import IngestLimits

BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 16
_MAX_EXTENDED_BYTES = 1 << 20  # of one pax header; macOS puts extended attributes there
_MAX_EXTENDED_RECORDS = 1000
_MAX_HEADERS_OF_A_FILE = 8  # its own, a pax header, a long name and link, a global header
_REGULAR, _FOLDER, _LONG_NAME, _LONG_LINK = b"0", b"5", b"L", b"K"
_PAX, _PAX_GLOBAL, _SPARSE = b"x", b"g", b"S"
_LINKS = (b"1", b"2")
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_LOW_BYTES = bytes(range(128))


@dataclass(frozen=True)
class TarEntry:
    """One regular file of a tar.

    Args:
        name: Clean, with `/` between parts.
        size_bytes: Of its content.
    """

    name: str
    size_bytes: int


@dataclass(frozen=True)
class _Header:
    name: bytes
    kind: bytes
    size_bytes: int


def is_header(block: bytes) -> bool:
    """Tell whether 512 bytes are a tar header: its checksum says so, whatever the dialect."""
    if len(block) != BLOCK_BYTES or block == _ZERO_BLOCK:
        return False
    try:
        declared = _octal(block[148:156], "a header")
    except CorruptArchive:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    signed = unsigned - 256 * len(rest.translate(None, _LOW_BYTES))
    return declared in (unsigned, signed)


def walk_tar(stream: TarStream, limits: IngestLimits) -> Iterator[tuple[TarEntry, Iterator[bytes]]]:
    """Yield each regular file and its content; what is not read of it is skipped.

    Args:
        stream: The unpacked bytes of the archive, from the first one.
        limits: What it may hold.

    Raises:
        ArchiveError: The leaf says which rule is broken and where.
    """
    names = NameRegister(limits)
    while (header := _next_header(stream, limits)) is not None:
        name = decode_name(header.name)
        _check_kind(name, header)
        is_folder = header.kind == _FOLDER
        clean = names.add(name, is_folder=is_folder)
        if is_folder:
            if header.size_bytes:
                raise CorruptArchive(printable(clean), "it is a folder with content")
            continue
        if header.size_bytes > limits.max_entry_bytes:
            raise EntryTooLarge(printable(clean), limits.max_entry_bytes)
        content = _content(stream, clean, header.size_bytes)
        yield TarEntry(clean, header.size_bytes), content
        for _ in content:
            pass
    _check_end(stream)


def _content(stream: TarStream, name: str, size_bytes: int) -> Iterator[bytes]:
    remaining = size_bytes
    while remaining:
        chunk = stream.read(min(remaining, _CHUNK_BYTES))
        if not chunk:
            raise CorruptArchive(printable(name), "the archive ends inside it")
        remaining -= len(chunk)
        yield chunk
    _skip_padding(stream, size_bytes)


def _next_header(stream: TarStream, limits: IngestLimits) -> _Header | None:
    """Return the next file's header with its extended headers applied; None at the end."""
    records: dict[str, bytes] = {}
    for _ in range(_MAX_HEADERS_OF_A_FILE):
        header = _plain_header(stream)
        if header is None and not records:
            return None
        if header is None:
            raise CorruptArchive("a header", "the archive ends inside it")
        if header.kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            return _applied(header, records)
        _apply_extended(stream, header, records, limits)
    raise CorruptArchive("a header", "too many extended headers in a row")


def _apply_extended(
    stream: TarStream, header: _Header, records: dict[str, bytes], limits: IngestLimits
) -> None:
    if header.kind == _LONG_NAME and header.size_bytes > limits.max_path_bytes + 1:
        raise NameTooLong("a long name", limits.max_path_bytes, "bytes")
    data = _extended(stream, header)
    if header.kind == _LONG_NAME:
        records["path"] = data.split(b"\x00")[0]
    elif header.kind == _PAX:
        records.update(_pax_records(data))
    elif header.kind == _PAX_GLOBAL and {"path", "size"} & _pax_records(data).keys():
        raise AmbiguousArchive("one header names or sizes all files at once")
    # A long link needs nothing: the link itself follows and is refused by its own name


def _applied(header: _Header, records: dict[str, bytes]) -> _Header:
    if any(key.startswith("GNU.sparse") for key in records):
        raise SparseFile(printable(decode_name(records.get("path", header.name))))
    name, size_bytes = records.get("path", header.name), header.size_bytes
    if "size" in records:
        digits = records["size"]
        if not digits.isdigit() or len(digits) > 20:
            raise CorruptArchive(printable(decode_name(name)), "its size is no number")
        size_bytes = int(digits)
    kind = header.kind
    if kind == b"\x00":  # the oldest dialect marks folders by their name
        kind = _FOLDER if name.endswith(b"/") else _REGULAR
    return _Header(name, kind, size_bytes)


def _plain_header(stream: TarStream) -> _Header | None:
    block = stream.read_exactly(BLOCK_BYTES)
    if block == _ZERO_BLOCK:
        return None
    if not is_header(block):
        raise CorruptArchive("a header", "its checksum is wrong")
    name, prefix = block[:100].split(b"\x00")[0], block[345:500].split(b"\x00")[0]
    if block[257:263] == b"ustar\x00" and prefix:
        name = prefix + b"/" + name
    shown = printable(name.decode("utf-8", "replace"))
    return _Header(name, block[156:157], _number(block[124:136], shown))


def _check_kind(name: str, header: _Header) -> None:
    shown = printable(name)
    if header.kind in _LINKS:
        raise LinkNotAllowed(shown)
    if header.kind == _SPARSE:
        raise SparseFile(shown)
    if header.kind not in (_REGULAR, _FOLDER):
        raise SpecialFile(shown)


def _extended(stream: TarStream, header: _Header) -> bytes:
    if header.size_bytes > _MAX_EXTENDED_BYTES:
        raise CorruptArchive("an extended header", f"it is over {_MAX_EXTENDED_BYTES} bytes")
    data = stream.read_exactly(header.size_bytes)
    _skip_padding(stream, header.size_bytes)
    return data


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Parse lines of `<length> <key>=<value>`; a later one of the same key wins."""
    records: dict[str, bytes] = {}
    position = 0
    for _ in range(_MAX_EXTENDED_RECORDS):
        if position >= len(data) or data[position] == 0:
            return records
        digits = data[position : position + 8].split(b" ")[0]
        end = position + int(digits) if digits.isdigit() else position
        record = data[position + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(data) or not equals or not value.endswith(b"\n"):
            raise CorruptArchive("an extended header", "a record of it is damaged")
        records[key.decode("utf-8", "replace")] = value[:-1]
        position = end
    raise CorruptArchive("an extended header", f"it has over {_MAX_EXTENDED_RECORDS} records")


def _skip_padding(stream: TarStream, size_bytes: int) -> None:
    stream.read_exactly(-size_bytes % BLOCK_BYTES)


def _check_end(stream: TarStream) -> None:
    """Accept zeros behind the end mark and nothing else: a second archive could hide there."""
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(b"\x00"):
            raise AmbiguousArchive("something stands behind its end")


def _number(field: bytes, shown: str) -> int:
    """Parse octal digits or, for large sizes, GNU's base-256; negative numbers are refused."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] & 0x80:
        raise CorruptArchive(shown, "its size is negative")
    return _octal(field, shown)


def _octal(field: bytes, shown: str) -> int:
    digits = field.split(b"\x00")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise CorruptArchive(shown, "a number in its header is damaged")
    return int(digits, 8) if digits else 0
