"""The parser of requests: pieces that are kept back change nothing of what is read."""

from __future__ import annotations

from collections.abc import Iterator

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.http_parser import RequestParser

_HEAD = b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\n"
_MESSAGES = (
    b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Odd: a\r\n\r\n",
    _HEAD + b"Content-Length: 11\r\n\r\nhello\nworld",
    _HEAD + b"Content-Length: 0\r\n\r\n",
    _HEAD + b"Content-Length: 40000\r\n\r\n" + b"z" * 40_000,
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n\nworld\r\n0\r\n\r\n",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    _HEAD + b"Content-Length: 2\r\n\r\nok" + b"GET / HTTP/1.1\r\nHost: pipelined\r\n\r\n",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
    b"\x00\x01 no request at all\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n",
)

Read = tuple[list[bytes], bytes, bool]


def read(pieces: list[bytes], *, gathers: bool) -> Read:
    """Return the targets of requests, the body of all, and whether an end was read."""
    parser = RequestParser()
    events: list[h11.Event] = []
    try:
        for piece in pieces:
            if data := parser.gather(piece) if gathers else piece:
                parser.receive_data(data)
                events += events_now(parser)
    except h11.RemoteProtocolError:
        return [], b"refused", True
    targets = [event.target for event in events if isinstance(event, h11.Request)]
    body = b"".join(event.data for event in events if isinstance(event, h11.Data))
    return targets, body, any(isinstance(event, h11.EndOfMessage) for event in events)


def events_now(parser: RequestParser) -> Iterator[h11.Event]:
    """Yield what can be read of what has come."""
    while not isinstance(event := parser.next_event(), type):
        yield event


@given(message=st.sampled_from(_MESSAGES), cuts=st.lists(st.integers(1, 400), max_size=200))
@example(message=_MESSAGES[1], cuts=[1] * 200)
@example(message=_MESSAGES[4], cuts=[1] * 200)
def test_pieces_are_read_like_the_whole(message: bytes, cuts: list[int]) -> None:
    pieces, rest = [], message
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces = [piece for piece in [*pieces, rest] if piece]
    assert read(pieces, gathers=True) == read([message], gathers=False)


@pytest.mark.parametrize("message", _MESSAGES[1:5])
def test_a_body_that_drips_is_not_parsed_byte_by_byte(message: bytes) -> None:
    parser, parsed = RequestParser(), 0
    for i in range(len(message)):
        if data := parser.gather(message[i : i + 1]):
            parsed += 1
            parser.receive_data(data)
            list(events_now(parser))
    assert parser.their_state is h11.DONE
    assert parsed < 3 + message.count(b"\n") + len(message) // (8 << 10)
