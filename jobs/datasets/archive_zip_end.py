"""The end of a zip archive: where the central directory is, if there is only one answer.

A zip is read from its end, and the end may lie: a comment may hold a second end record, zip64
records may point elsewhere (CVE-2025-8291), bytes may stand before the first entry (a picture that
is also an archive). Each is refused instead of interpreted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from jobs.datasets.errors import (
    AmbiguousArchive,
    ArchiveTooLarge,
    CorruptArchive,
    TooManyEntries,
)
from jobs.datasets.limits import IngestLimits

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END_MAGIC, _END64_MAGIC, _LOCATOR_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MAX_COMMENT_BYTES = 0xFFFF
_WHERE = "end of central directory"


@dataclass(frozen=True)
class Directory:
    """Where the central directory is.

    Args:
        offset: Its first byte; entries end before it.
        size_bytes: Its length; the end records follow directly.
        entries: How many it should hold.
        archive_bytes: Size of the whole file.
    """

    offset: int
    size_bytes: int
    entries: int
    archive_bytes: int


def has_end_record(file: BinaryIO) -> bool:
    """Tell whether a file ends like a zip, whatever it starts like."""
    tail, _ = _tail(file)
    return bool(_whole_ends(tail))


def find_directory(file: BinaryIO, limits: IngestLimits) -> Directory:
    """Find the one central directory.

    Raises:
        CorruptArchive: There is no end record, or it points outside of the file.
        AmbiguousArchive: There is more than one answer.
        TooManyEntries: The end record declares too many; nothing was parsed yet.
        ArchiveTooLarge: The directory itself is too large to be read.
    """
    tail, archive_bytes = _tail(file)
    position = _the_end(tail)
    end_offset = archive_bytes - len(tail) + position
    (_, disk, first_disk, here, entries, size, offset, _) = _END.unpack_from(tail, position)
    declared = (disk, first_disk, here, entries, size, offset)
    records_offset = end_offset
    if (wide := _zip64(file, end_offset, declared)) is not None:
        entries, size, offset, records_offset = wide
    elif disk or first_disk or here != entries:
        raise CorruptArchive(_WHERE, "it is one part of a split archive")
    if entries > limits.max_entries:
        raise TooManyEntries(limits.max_entries)
    if size > limits.max_directory_bytes:
        raise ArchiveTooLarge("the list of files", limits.max_directory_bytes)
    if offset + size > records_offset:
        raise CorruptArchive(_WHERE, "it points outside of the file")
    if offset + size < records_offset:
        raise AmbiguousArchive("something stands before it or between its directory and its end")
    return Directory(offset, size, entries, archive_bytes)


def _tail(file: BinaryIO) -> tuple[bytes, int]:
    archive_bytes = file.seek(0, 2)
    file.seek(max(0, archive_bytes - _END.size - _MAX_COMMENT_BYTES))
    return file.read(), archive_bytes


def _whole_ends(tail: bytes) -> list[int]:
    """Return the positions of end records whose comment ends exactly where the file ends."""
    positions = []
    position = tail.find(_END_MAGIC)
    while position >= 0 and position + _END.size <= len(tail):
        (comment_length,) = struct.unpack_from("<H", tail, position + _END.size - 2)
        if position + _END.size + comment_length == len(tail):
            positions.append(position)
        position = tail.find(_END_MAGIC, position + 1)
    return positions


def _the_end(tail: bytes) -> int:
    positions = _whole_ends(tail)
    if not positions:
        raise CorruptArchive(_WHERE, "it is missing, so the archive is cut off or has a tail")
    if len(positions) > 1 or tail.find(_END_MAGIC, positions[0] + 1) >= 0:
        raise AmbiguousArchive("it has two ends")
    return positions[0]


def _zip64(
    file: BinaryIO, end_offset: int, declared: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """Return entries, size, offset and place of the zip64 record; None if there is none.

    The record has to stand directly before its locator, and to agree with every field of the
    plain end record that is not saturated.
    """
    saturated = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    file.seek(max(0, end_offset - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if end_offset < _LOCATOR.size or not locator.startswith(_LOCATOR_MAGIC):
        if any(value == most for value, most in zip(declared, saturated, strict=True)):
            raise CorruptArchive(_WHERE, "its zip64 record is missing")
        return None
    _, record_disk, record_offset, disks = _LOCATOR.unpack(locator)
    if record_disk or disks > 1 or record_offset + _END64.size > end_offset - _LOCATOR.size:
        raise AmbiguousArchive("its zip64 record is not where it says")
    file.seek(record_offset)
    fields = _END64.unpack(file.read(_END64.size))
    if fields[0] != _END64_MAGIC or record_offset + 12 + fields[1] != end_offset - _LOCATOR.size:
        raise AmbiguousArchive("its zip64 record is not where it says")
    wide = (fields[4], fields[5], fields[6], fields[7], fields[8], fields[9])
    for value, most, actual in zip(declared, saturated, wide, strict=True):
        if value not in (most, actual):
            raise AmbiguousArchive("its two end records disagree")
    if wide[0] or wide[1] or wide[2] != wide[3]:
        raise CorruptArchive(_WHERE, "it is one part of a split archive")
    return wide[3], wide[4], wide[5], record_offset
