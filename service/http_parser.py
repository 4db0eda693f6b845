"""Reads requests more strictly than h11 alone: what is long, hostile or ambiguous is refused.

h11 bounds a head only while it is incomplete, takes `Content-Length` beside `Transfer-Encoding`,
and spends 20 µs of the event loop on each chunk, however small. Pieces that end nothing need not be
parsed one by one: `gather` keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import h11

#: Bound on the request line and the headers together, and on what frames chunks.
MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 100
_VERSIONS = (b"1.0", b"1.1")
_MAX_TARGET_BYTES = 8 << 10
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 256  # of the chunks beyond those
_MOST_WAITING_BYTES = 16 << 10


@dataclass(frozen=True)
class Refusal:
    """Why what was sent gets no further; told as a problem document.

    Args:
        status: Of the answer.
        code: Stable, kebab-case.
        detail: A sentence that says what to do.
        lingers: Whether an honest client is sending, and reads no answer before it has sent.
    """

    status: int
    code: str
    detail: str
    lingers: bool = False


MALFORMED = Refusal(400, "malformed-request", "this is no well-formed HTTP/1.1 request")
_TWO_LENGTHS = Refusal(
    400, "malformed-request", "send Content-Length or Transfer-Encoding, never both"
)
_SMALL_CHUNKS = Refusal(
    413, "payload-too-large", f"the chunks are too small; send {_MIN_MEAN_CHUNK_BYTES} bytes each"
)
_LONG_FRAME = Refusal(
    400, "malformed-request", f"a chunk's header or the trailer has over {MAX_HEAD_BYTES} bytes"
)
_LONG_HEAD = Refusal(
    431, "headers-too-large", f"send at most {_MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
)
_LONG_TARGET = Refusal(
    414, "uri-too-long", f"send at most {_MAX_TARGET_BYTES} bytes of path and query"
)


class RequestParser(h11.Connection):
    """The parser of one connection; `refusal` says why `next_event` raised.

    Args:
        refusal_of_uploads: Says whether there are too many already, at the head of one more.
    """

    def __init__(self, refusal_of_uploads: Callable[[], Refusal | None] = lambda: None) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._refusal_of_uploads = refusal_of_uploads
        self.refusal = MALFORMED
        self._in_head = True
        self._head_has_begun = False
        self._chunks = 0
        self._body_bytes = 0
        self._coming_bytes = 0.0  # of the body
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        #: Of answers, whether they have left or not.
        self.sent_bytes = 0

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # one for all events
        """Return the bytes of an event of the answer, and count them."""
        data = super().send(event)
        self.sent_bytes += len(data or b"")
        return data

    @property
    def is_upload(self) -> bool:
        """Whether a body is arriving that is too long to be kept here until it is complete."""
        return self.their_state is h11.SEND_BODY and self._coming_bytes > _MOST_WAITING_BYTES

    def gather(self, data: bytes) -> bytes:
        """Keep back pieces that complete nothing; return what is to be parsed now, or nothing.

        Heads and chunked bodies end with a line, a body of declared length with its last byte.
        """
        waiting_bytes = self._waiting_bytes + len(data)
        if waiting_bytes <= _MOST_WAITING_BYTES and not self._may_complete(waiting_bytes, data):
            self._waiting.append(data)
            self._waiting_bytes = waiting_bytes
            return b""
        if self._waiting:
            data = b"".join([*self._waiting, data])
            self._waiting, self._waiting_bytes = [], 0
        return data

    def _may_complete(self, waiting_bytes: int, data: bytes) -> bool:
        if self.their_state is h11.SEND_BODY:
            if self._coming_bytes == math.inf:
                return b"\n" in data
            return self._body_bytes + waiting_bytes >= self._coming_bytes
        return not self._head_has_begun or self.their_state is not h11.IDLE or b"\n" in data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event of the request.

        Raises:
            h11.RemoteProtocolError: The request is malformed or over a limit.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == _LONG_HEAD.status:
                self.refusal = self._too_long()
            raise
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if (self._chunks - _FREE_CHUNKS) * _MIN_MEAN_CHUNK_BYTES > self._body_bytes:
                self._refuse_if(_SMALL_CHUNKS)
        elif isinstance(event, h11.EndOfMessage):
            self._in_head = True
        elif event is h11.NEED_DATA:
            self._head_has_begun = self._in_head and bool(self.trailing_data[0])
        return event

    def _begin(self, request: h11.Request) -> None:
        self._in_head = self._head_has_begun = False
        self._chunks = self._body_bytes = 0
        self._refuse_if(_head_fault(request))
        self._coming_bytes = _coming_bytes(request)
        if self.is_upload:
            self._refuse_if(self._refusal_of_uploads())

    def _too_long(self) -> Refusal:
        if not self._in_head:
            return _LONG_FRAME
        return _LONG_HEAD if b"\n" in self.trailing_data[0] else _LONG_TARGET

    def _refuse_if(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            self.refusal = refusal
            raise h11.RemoteProtocolError(refusal.detail, refusal.status)


def _coming_bytes(request: h11.Request) -> float:
    """Return the length of the body, infinity if it comes in chunks."""
    said = dict(request.headers)  # h11 has made one of several equal lengths
    return math.inf if b"transfer-encoding" in said else float(said.get(b"content-length", 0))


def _head_fault(request: h11.Request) -> Refusal | None:
    headers = request.headers.raw_items()
    size_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > _MAX_HEADERS or size_bytes > MAX_HEAD_BYTES:
        return _LONG_HEAD
    if len(request.target) > _MAX_TARGET_BYTES:
        return _LONG_TARGET
    if request.http_version not in _VERSIONS:
        return MALFORMED
    names = {name.lower() for name, _ in headers}
    return _TWO_LENGTHS if {b"content-length", b"transfer-encoding"} <= names else None
