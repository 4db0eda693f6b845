from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_cache import wire
from models_cache.errors import WireMalformed


def frame_of(header: bytes, parts: bytes = b"") -> bytes:
    return struct.pack("<4sBI", b"GRFT", 1, len(header)) + header + parts


@given(
    header=st.dictionaries(
        st.text(max_size=8).filter(lambda key: key != "lengths"),
        st.one_of(st.none(), st.integers(), st.text(), st.lists(st.booleans())),
    ),
    parts=st.lists(st.binary(max_size=64), max_size=5),
)
def test_what_was_encoded_is_decoded(header: dict[str, object], parts: list[bytes]) -> None:
    decoded, views = wire.decode(wire.encode(header, parts), max_parts=5)
    assert decoded == header
    assert [bytes(view) for view in views] == parts


def test_parts_are_views_of_the_received_frame() -> None:
    frame = bytearray(wire.encode({}, [b"abc"]))
    _, (view,) = wire.decode(memoryview(frame), max_parts=1)
    frame[-1] = ord("z")
    assert bytes(view) == b"abz"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decoded_never_anything_else(noise: bytes) -> None:
    for frame in (noise, frame_of(b"{}")[:-2] + noise, frame_of(noise)):
        try:
            wire.decode(frame, max_parts=3)
        except WireMalformed:
            continue


def test_every_cut_of_a_frame_is_refused() -> None:
    frame = wire.encode({"artifact": "0" * 64}, [b"one", b"two"])
    for end in range(len(frame)):
        with pytest.raises(WireMalformed):
            wire.decode(frame[:end], max_parts=2)


@pytest.mark.parametrize(
    "frame",
    [
        b"GRFX" + wire.encode({}, [])[4:],
        b"GRFT\x02" + wire.encode({}, [])[5:],
        wire.encode({}, []) + b"more",
        struct.pack("<4sBI", b"GRFT", 1, 2**32 - 1) + b"{}",
        frame_of(b"[]"),
        frame_of(b'{"lengths": []'),
        frame_of(b"{}"),
        frame_of(b'{"lengths": [-1, 1]}'),
        frame_of(b'{"lengths": [true]}', b"x"),
        frame_of(b'{"lengths": [1.0]}', b"x"),
        frame_of(b'{"lengths": [1e400]}', b"x"),
        frame_of(b'{"lengths": NaN}'),
        frame_of(b'{"lengths": [], "lengths": []}'),
        frame_of(b'{"lengths": [' + b"9" * 5000 + b"]}"),
        frame_of(b'{"lengths": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        frame_of(b'\xff\xfe{"lengths": []}'),
        frame_of(json.dumps({"lengths": [0, 0, 0]}).encode()),
    ],
)
def test_malformed_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(WireMalformed):
        wire.decode(frame, max_parts=2)


def test_the_header_may_not_name_lengths_itself() -> None:
    with pytest.raises(WireMalformed, match="lengths"):
        wire.encode({"lengths": []}, [])


def test_a_header_beyond_the_limit_is_refused_when_encoding() -> None:
    with pytest.raises(WireMalformed, match="header"):
        wire.encode({"text": "x" * wire.MAX_HEADER_BYTES}, [])
