"""The central directory of a zip archive: one entry for each file, checked for itself.

Offsets and sizes are checked against the rest of the archive by `archive_zip`.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jobs.datasets.archive_names import NameRegister, decode_name
from jobs.datasets.archive_zip_end import Directory
from jobs.datasets.errors import (
    AmbiguousArchive,
    CorruptArchive,
    EncryptedArchive,
    LinkNotAllowed,
    SpecialFile,
    UnsupportedCompression,
    printable,
)
from jobs.datasets.limits import IngestLimits

STORED, DEFLATED = 0, 8
FLAG_ENCRYPTED, FLAG_DESCRIPTOR, FLAG_STRONG = 1 << 0, 1 << 3, 1 << 6
_FLAG_PATCH, _FLAG_MASKED = 1 << 5, 1 << 13
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_CENTRAL_MAGIC = b"PK\x01\x02"
_EXTRA_ZIP64, _EXTRA_UNICODE_PATH = 0x0001, 0x7075
_MAX32 = 0xFFFFFFFF


@dataclass(frozen=True)
class CentralEntry:
    """What the central directory says about one file or folder.

    Args:
        raw_name: As stored; its own header has to repeat it.
        name: Clean, with `/` between parts.
        is_folder: It has no content.
        flags: General purpose bits.
        method: `STORED` or `DEFLATED`.
        crc32: Of the unpacked bytes.
        packed_bytes: As stored in the archive.
        size_bytes: Unpacked.
        offset: Where its own header begins.
    """

    raw_name: bytes
    name: str
    is_folder: bool
    flags: int
    method: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    offset: int


def central_entries(
    file: BinaryIO, directory: Directory, limits: IngestLimits
) -> Iterator[CentralEntry]:
    """Yield every entry of the central directory, in its order.

    Raises:
        ArchiveError: An entry is damaged, or of a kind, method or name that is not accepted.
    """
    file.seek(directory.offset)
    data = file.read(directory.size_bytes)
    names = NameRegister(limits)
    position, count = 0, 0
    while position < len(data):
        entry, position = _central_entry(data, position, names)
        count += 1
        yield entry
    if count != directory.entries:
        raise AmbiguousArchive(f"its end declares {directory.entries} entries, it has {count}")


def _central_entry(data: bytes, position: int, names: NameRegister) -> tuple[CentralEntry, int]:
    if len(data) - position < _CENTRAL.size or not data.startswith(_CENTRAL_MAGIC, position):
        raise CorruptArchive("central directory", "an entry of it is damaged")
    fields = _CENTRAL.unpack_from(data, position)
    flags, method, crc32 = fields[3], fields[4], fields[7]
    mode, disk = fields[15] >> 16, fields[13]
    name_at = position + _CENTRAL.size
    extra_at = name_at + fields[10]
    position = extra_at + fields[11] + fields[12]
    if position > len(data):
        raise CorruptArchive("central directory", "an entry of it is cut off")
    raw_name = data[name_at:extra_at]
    extras = _extras(data[extra_at : extra_at + fields[11]])
    name = _effective_name(raw_name, extras)
    size, packed, offset = _wide(extras, name, (fields[9], fields[8], fields[16]))
    is_folder = name.endswith(("/", "\\")) or stat.S_ISDIR(mode)
    clean = names.add(name, is_folder=is_folder)
    _check_kind(clean, mode)
    _check_method(clean, flags, method)
    if disk not in (0, 0xFFFF) or (is_folder and size):
        raise CorruptArchive(printable(clean), "its header is inconsistent")
    entry = CentralEntry(raw_name, clean, is_folder, flags, method, crc32, packed, size, offset)
    return entry, position


def _extras(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields by id, the first of each; unparsable rests are padding."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(extra):
        key, length = struct.unpack_from("<HH", extra, position)
        found.setdefault(key, extra[position + 4 : position + 4 + length])
        position += 4 + length
    return found


def _effective_name(raw_name: bytes, extras: dict[int, bytes]) -> str:
    """Return the name, taken from Info-ZIP's Unicode field where it belongs to this one."""
    field = extras.get(_EXTRA_UNICODE_PATH, b"")
    if len(field) > 5 and field[0] == 1:
        (crc,) = struct.unpack_from("<I", field, 1)
        if crc == zlib.crc32(raw_name):
            return decode_name(field[5:])
    return decode_name(raw_name)


def _wide(
    extras: dict[int, bytes], name: str, narrow: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return size, packed size and offset with the zip64 values in place of saturated ones."""
    values = list(narrow)
    field, position = extras.get(_EXTRA_ZIP64, b""), 0
    for index, value in enumerate(narrow):
        if value == _MAX32:
            if position + 8 > len(field):
                raise CorruptArchive(printable(name), "its zip64 sizes are missing")
            (values[index],) = struct.unpack_from("<Q", field, position)
            position += 8
    return values[0], values[1], values[2]


def _check_kind(name: str, mode: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise LinkNotAllowed(printable(name))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SpecialFile(printable(name))


def _check_method(name: str, flags: int, method: int) -> None:
    if flags & (FLAG_ENCRYPTED | FLAG_STRONG | _FLAG_MASKED):
        raise EncryptedArchive(printable(name))
    if method not in (STORED, DEFLATED) or flags & _FLAG_PATCH:
        raise UnsupportedCompression(printable(name), method)
