"""The bytes of a tar, unpacked from gzip or not, counted while they come.

A bomb is stopped at the cap, not behind it: at no time more than one chunk is unpacked that was
not counted.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from jobs.datasets.errors import ArchiveBomb, ArchiveTooLarge, CorruptArchive
from jobs.datasets.limits import IngestLimits

_CHUNK_BYTES = 1 << 16
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_WHERE = "the archive"
# Parallel packers write one gzip member for each block, of 64 KiB and more. A member without
# content is 20 bytes and a new inflater, so their number is bounded by what comes out of them.
_FREE_MEMBERS = 1000
_MEMBER_BYTES = 1 << 14


@dataclass(frozen=True)
class Budget:
    """How much of a stream is looked at before the rest is left for later.

    Args:
        unpacked_bytes: Of the tar.
        packed_bytes: Of the gzip around it: empty blocks take time and unpack to nothing.
    """

    unpacked_bytes: int
    packed_bytes: int


class BudgetSpent(Exception):
    """The part of a stream that its budget covers is over, and nothing is wrong with it."""


class TarStream:
    """Reads the unpacked bytes of a tar or tar.gz from front to back.

    Args:
        file: The archive, at its first byte.
        limits: How much may come out of it.
        gzipped: Whether it is compressed.
        budget: Where to stop; None reads to the end.
    """

    def __init__(
        self, file: BinaryIO, limits: IngestLimits, *, gzipped: bool, budget: Budget | None = None
    ) -> None:
        self._file = file
        self._limits = limits
        self._budget = budget
        self._inflater = zlib.decompressobj(_GZIP_WINDOW) if gzipped else None
        self._members = 1
        self._packed = b""
        self._packed_bytes = 0
        self._unpacked_bytes = 0
        self._ready = b""
        self._ready_at = 0  # of `_ready`, what was returned: cutting it for each header is slow

    def read(self, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes, none only at the end.

        Raises:
            ArchiveBomb: Far more came out than went in.
            ArchiveTooLarge: More came out than is accepted.
            CorruptArchive: The compressed data is damaged or cut off.
            BudgetSpent: The budget does not cover more.
        """
        while self._ready_at == len(self._ready) and (chunk := self._next_chunk()) is not None:
            self._ready, self._ready_at = chunk, 0
            self._unpacked_bytes += len(chunk)
            self._check_amount()
        data = self._ready[self._ready_at : self._ready_at + size_bytes]
        self._ready_at += len(data)
        return data

    def read_exactly(self, size_bytes: int) -> bytes:
        """Return `size_bytes` bytes.

        Raises:
            CorruptArchive: The archive ends before; and as `read`.
        """
        parts: list[bytes] = []
        missing = size_bytes
        while missing:
            part = self.read(missing)
            if not part:
                raise CorruptArchive(_WHERE, "it is cut off")
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _check_amount(self) -> None:
        limits = self._limits
        allowed_bytes = max(limits.ratio_free_bytes, limits.max_ratio * self._packed_bytes)
        if self._inflater is not None and self._unpacked_bytes > allowed_bytes:
            raise ArchiveBomb(_WHERE, limits.max_ratio)
        # Headers and padding are at most 2 KiB for each entry
        if self._unpacked_bytes > limits.max_unpacked_bytes + 2048 * limits.max_entries:
            raise ArchiveTooLarge("the content", limits.max_unpacked_bytes)
        if self._budget is not None and self._unpacked_bytes > self._budget.unpacked_bytes:
            raise BudgetSpent

    def _next_chunk(self) -> bytes | None:
        if self._inflater is None:
            return self._read_packed() or None
        try:
            return self._inflate(self._inflater)
        except zlib.error as error:
            raise CorruptArchive(_WHERE, "it cannot be inflated") from error

    def _inflate(self, inflater: zlib._Decompress) -> bytes | None:
        if inflater.eof:
            # Several gzip members in a row are one file (gzip -c a >> b), zeros behind are padding
            self._packed = inflater.unused_data.lstrip(b"\x00")
            while not self._packed and (more := self._read_packed()):
                self._packed = more.lstrip(b"\x00")
            if not self._packed:
                return None
            self._count_member()
            self._inflater = inflater = zlib.decompressobj(_GZIP_WINDOW)
        self._packed = self._packed or self._read_packed()
        if not self._packed:
            return self._flushed(inflater)
        chunk = inflater.decompress(self._packed, _CHUNK_BYTES)
        self._packed = inflater.unconsumed_tail
        return chunk

    def _count_member(self) -> None:
        self._members += 1
        if self._members > _FREE_MEMBERS + self._unpacked_bytes // _MEMBER_BYTES:
            raise CorruptArchive(
                _WHERE, f"it has over {_FREE_MEMBERS} gzip members without content"
            )

    def _read_packed(self) -> bytes:
        packed = self._file.read(_CHUNK_BYTES)
        self._packed_bytes += len(packed)
        budget = self._budget
        if budget and self._inflater is not None and self._packed_bytes > budget.packed_bytes:
            raise BudgetSpent
        return packed

    def _flushed(self, inflater: zlib._Decompress) -> bytes:
        chunk = inflater.decompress(b"", _CHUNK_BYTES)
        if not chunk and not inflater.eof:
            raise CorruptArchive(_WHERE, "it is cut off")
        return chunk
