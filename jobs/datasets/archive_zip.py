"""Zip archives: a walk of the central directory by hand, so that there is one way to read one.

The standard library's reader accepts overlapping entries, prefixes, two ends and names that differ
between the two headers. Here every byte that is used is accounted for before anything is inflated:
the archive starts with its first entry, ends with its end record, and entries share nothing.
Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jobs.datasets.archive_zip_central import (
    DEFLATED,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    FLAG_STRONG,
    STORED,
    CentralEntry,
    central_entries,
)
from jobs.datasets.archive_zip_end import Directory, find_directory
from jobs.datasets.errors import (
    AmbiguousArchive,
    ArchiveBomb,
    ArchiveTooLarge,
    CorruptArchive,
    EncryptedArchive,
    EntryTooLarge,
    NameMismatch,
    OverlappingEntries,
    printable,
)
from jobs.datasets.limits import ARRAY_SUFFIX, IngestLimits

_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC, _DESCRIPTOR_MAGIC = b"PK\x03\x04", b"PK\x07\x08"
_MAX32 = 0xFFFFFFFF
_CHUNK_BYTES = 1 << 16
_SMALLEST_DESCRIPTOR_BYTES = 12


@dataclass(frozen=True)
class ZipEntry:
    """One file of the central directory, every field checked against its local header.

    Args:
        name: Clean, with `/` between parts.
        size_bytes: Unpacked.
        packed_bytes: As stored in the archive.
        data_offset: Where the packed bytes begin.
        deflated: Otherwise stored as they are.
        crc32: Of the unpacked bytes.
    """

    name: str
    size_bytes: int
    packed_bytes: int
    data_offset: int
    deflated: bool
    crc32: int


def walk_zip(file: BinaryIO, limits: IngestLimits) -> list[ZipEntry]:
    """Check the whole structure of a zip without inflating anything.

    Args:
        file: The archive; seekable.
        limits: What it may hold.

    Returns:
        Its files (no folders) in the order of their bytes.

    Raises:
        ArchiveError: The leaf says which rule is broken and where.
    """
    directory = find_directory(file, limits)
    entries = sorted(central_entries(file, directory, limits), key=lambda entry: entry.offset)
    if not entries:
        return []
    _check_apart(entries, directory)
    _check_sizes(entries, directory, limits)
    if entries[0].offset != 0:
        raise AmbiguousArchive("something stands before the first entry")
    ends = [entry.offset for entry in entries[1:]] + [directory.offset]
    located = [_locate(file, entry, end) for entry, end in zip(entries, ends, strict=True)]
    return [entry for entry in located if entry is not None]


def read_entry(file: BinaryIO, entry: ZipEntry) -> Iterator[bytes]:
    """Yield the unpacked bytes of an entry in chunks, never more than it declared.

    Raises:
        CorruptArchive: More or fewer bytes than declared, a wrong CRC, or no valid deflate stream.
    """
    crc, count = 0, 0
    for chunk in _inflated(file, entry) if entry.deflated else _stored(file, entry):
        count += len(chunk)
        if count > entry.size_bytes:
            raise CorruptArchive(printable(entry.name), "it holds more bytes than it declares")
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if count != entry.size_bytes:
        raise CorruptArchive(printable(entry.name), "it holds fewer bytes than it declares")
    if crc != entry.crc32:
        raise CorruptArchive(printable(entry.name), "its checksum is wrong")


def _stored(file: BinaryIO, entry: ZipEntry) -> Iterator[bytes]:
    file.seek(entry.data_offset)
    remaining = entry.packed_bytes
    while remaining and (chunk := file.read(min(remaining, _CHUNK_BYTES))):
        remaining -= len(chunk)
        yield chunk


def _inflated(file: BinaryIO, entry: ZipEntry) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, entry):
            while packed and not inflater.eof:
                yield inflater.decompress(packed, _CHUNK_BYTES)
                packed = inflater.unconsumed_tail
            if inflater.unused_data or (packed and inflater.eof):
                raise CorruptArchive(printable(entry.name), "bytes follow its compressed data")
        while not inflater.eof and (chunk := inflater.decompress(b"", _CHUNK_BYTES)):
            yield chunk
    except zlib.error as error:
        raise CorruptArchive(printable(entry.name), "it cannot be inflated") from error
    if not inflater.eof:
        raise CorruptArchive(printable(entry.name), "its compressed data ends early")


def _check_apart(entries: list[CentralEntry], directory: Directory) -> None:
    """Check that entries share no bytes; first of all, since overlaps make every size a lie."""
    ends = [entry.offset for entry in entries[1:]] + [directory.offset]
    for entry, end in zip(entries, ends, strict=True):
        if entry.offset + _LOCAL.size + len(entry.raw_name) + entry.packed_bytes > end:
            raise OverlappingEntries(printable(entry.name))


def _check_sizes(entries: list[CentralEntry], directory: Directory, limits: IngestLimits) -> None:
    total_bytes = 0
    for entry in entries:
        total_bytes += entry.size_bytes
        suspicious = entry.size_bytes > limits.ratio_free_bytes
        if suspicious and entry.size_bytes > limits.max_ratio * entry.packed_bytes:
            raise ArchiveBomb(printable(entry.name), limits.max_ratio)
        if entry.size_bytes > limits.max_entry_bytes and not entry.name.endswith(ARRAY_SUFFIX):
            raise EntryTooLarge(printable(entry.name), limits.max_entry_bytes)
    if total_bytes > max(limits.ratio_free_bytes, limits.max_ratio * directory.archive_bytes):
        raise ArchiveBomb("the archive", limits.max_ratio)
    if total_bytes > limits.max_unpacked_bytes:
        raise ArchiveTooLarge("the content", limits.max_unpacked_bytes)


def _locate(file: BinaryIO, entry: CentralEntry, end: int) -> ZipEntry | None:
    """Check an entry's local header and that it ends before `end`; None for a folder."""
    shown = printable(entry.name)
    data_offset = _data_offset(file, entry)
    data_end = data_offset + entry.packed_bytes
    described = bool(entry.flags & FLAG_DESCRIPTOR)
    if data_end + (_SMALLEST_DESCRIPTOR_BYTES if described else 0) > end:
        raise OverlappingEntries(shown)
    if described:
        _check_descriptor(file, entry, data_end, end)
    if entry.method == STORED and entry.packed_bytes != entry.size_bytes:
        raise CorruptArchive(shown, "it is stored as is, but its two sizes differ")
    if entry.is_folder:
        return None
    deflated = entry.method == DEFLATED
    return ZipEntry(
        entry.name, entry.size_bytes, entry.packed_bytes, data_offset, deflated, entry.crc32
    )


def _data_offset(file: BinaryIO, entry: CentralEntry) -> int:
    file.seek(entry.offset)
    header = file.read(_LOCAL.size + len(entry.raw_name))
    if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
        raise CorruptArchive(printable(entry.name), "its own header is missing")
    fields = _LOCAL.unpack_from(header)
    if fields[9] != len(entry.raw_name) or header[_LOCAL.size :] != entry.raw_name:
        raise NameMismatch(printable(entry.name))
    _check_local(entry, fields)
    return entry.offset + len(header) + int(fields[10])


def _check_local(entry: CentralEntry, fields: tuple[int, ...]) -> None:
    flags, method, crc32, packed, size = fields[2], fields[3], fields[6], fields[7], fields[8]
    shown = printable(entry.name)
    if flags & (FLAG_ENCRYPTED | FLAG_STRONG):
        raise EncryptedArchive(shown)
    if method != entry.method or (flags ^ entry.flags) & FLAG_DESCRIPTOR:
        raise CorruptArchive(shown, "its two headers disagree")
    # A writer that streams knows none of the three yet; a zip64 one keeps sizes elsewhere.
    unknown = {0} if flags & FLAG_DESCRIPTOR else set()
    if (
        crc32 not in {entry.crc32, *unknown}
        or packed not in {entry.packed_bytes, _MAX32, *unknown}
        or size not in {entry.size_bytes, _MAX32, *unknown}
    ):
        raise CorruptArchive(shown, "its two headers disagree")


def _check_descriptor(file: BinaryIO, entry: CentralEntry, data_end: int, end: int) -> None:
    """Check the record behind the data, in any of its four forms."""
    file.seek(data_end)
    record = file.read(min(24, end - data_end))
    sizes = (entry.crc32, entry.packed_bytes, entry.size_bytes)
    forms = [struct.pack("<IQQ", *sizes)]
    if max(sizes) <= _MAX32:
        forms.append(struct.pack("<III", *sizes))
    forms += [_DESCRIPTOR_MAGIC + form for form in forms]
    if not record.startswith(tuple(forms)):
        raise CorruptArchive(printable(entry.name), "the record behind its data is wrong")
