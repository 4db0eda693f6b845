"""TensorBoard's event files: scalars in TFRecord framing, without protobuf or TensorFlow.

A record is its length (uint64), the masked CRC of the length, the data and the masked CRC of the
data, all little-endian; the data is a protobuf `Event`. Of that message only five fields are
needed, so that they are written by hand: the worker carries neither library nor background thread.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed
_MASK_DELTA = 0xA282EAD8
_WORD = 0xFFFFFFFF
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def file_header(wall_seconds: float) -> bytes:
    """Return the first record of every event file.

    Args:
        wall_seconds: Unix time.
    """
    return _record(_field(1, _FIXED64, struct.pack("<d", wall_seconds)) + _text(3, "brain.Event:2"))


def scalars(wall_seconds: float, step: int, figures: Mapping[str, float]) -> bytes:
    """Return the record of some scalars measured at one step.

    Args:
        wall_seconds: Unix time.
        step: Optimizer step, at least 0.
        figures: Values by tag, kept as float32.
    """
    values = b"".join(
        _nested(1, _text(1, tag) + _field(2, _FIXED32, struct.pack("<f", value)))
        for tag, value in figures.items()
    )
    time = _field(1, _FIXED64, struct.pack("<d", wall_seconds))
    return _record(time + _field(2, _VARINT, _varint(step)) + _nested(5, values))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = _crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _WORD)


def _crc32c(data: bytes) -> int:
    crc = _WORD
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _WORD


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


def _field(number: int, wire_type: int, value: bytes) -> bytes:
    return _varint(number << 3 | wire_type) + value


def _nested(number: int, message: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(message)) + message)


def _text(number: int, text: str) -> bytes:
    return _nested(number, text.encode())


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
