"""Frames between the api and the inference process: one JSON header, then raw bytes.

    magic b"GRFT" | version uint8 | header length uint32 little-endian | header JSON | parts

The header's `lengths` say how long each part is. Encoded images travel as they were uploaded: no
base64, no multipart parser, and `decode` gives views into the body that was received. Every bound
is checked before anything is read, since the inference process may also listen on a port.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from models_cache.errors import WireMalformed

MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"GRFT"
_VERSION = 1
_PREFIX = struct.Struct("<4sBI")
_LENGTHS = "lengths"


def encode(header: Mapping[str, Any], parts: Sequence[bytes | memoryview]) -> bytes:
    """Return one frame of `header` (JSON values, without `lengths`) and `parts`."""
    if _LENGTHS in header:
        raise WireMalformed(f"{_LENGTHS!r} is set by encode")
    lengths = [memoryview(part).nbytes for part in parts]
    text = json.dumps({**header, _LENGTHS: lengths}, allow_nan=False).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise WireMalformed(f"the header is {len(text)} bytes, the limit is {MAX_HEADER_BYTES}")
    return b"".join([_PREFIX.pack(_MAGIC, _VERSION, len(text)), text, *parts])


def decode(frame: bytes | memoryview, max_parts: int) -> tuple[dict[str, Any], list[memoryview]]:
    """Return the header (without `lengths`) and views of the parts.

    Raises:
        WireMalformed: The frame is no frame of this version, is cut short or too long, has more
            than `max_parts` parts, or its header is no plain JSON object.
    """
    view = memoryview(frame)
    if view.nbytes < _PREFIX.size:
        raise WireMalformed(f"{view.nbytes} bytes are less than the prefix of {_PREFIX.size}")
    magic, version, header_bytes = _PREFIX.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise WireMalformed(f"the frame begins with {bytes(view[:5])!r}, not version {_VERSION}")
    body = _PREFIX.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or body > view.nbytes:
        raise WireMalformed(f"a header of {header_bytes} bytes in a frame of {view.nbytes}")
    header = _header(bytes(view[_PREFIX.size : body]))
    lengths = _checked_lengths(header.pop(_LENGTHS, None), max_parts)
    if body + sum(lengths) != view.nbytes:
        raise WireMalformed(f"parts of {sum(lengths)} bytes in a body of {view.nbytes - body}")
    return header, _split(view[body:], lengths)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireMalformed(f"the header is no plain JSON: {error}") from error
    if not isinstance(header, dict):
        raise WireMalformed("the header is no JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key appears twice")
    return unique


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _checked_lengths(lengths: object, max_parts: int) -> list[int]:
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths):
        raise WireMalformed(f"{_LENGTHS!r} is no list of sizes in bytes")
    if len(lengths) > max_parts:
        raise WireMalformed(f"{len(lengths)} parts, the limit is {max_parts}")
    return lengths


def _split(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    parts, start = [], 0
    for length in lengths:
        parts.append(view[start : start + length])
        start += length
    return parts
