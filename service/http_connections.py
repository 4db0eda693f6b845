"""The little of an HTTP/1.1 client that the inference process needs, on connections that are kept.

A general client takes four times the processor for such a request (`docs/experiments.md`), and
a prediction is one. Bodies have a known length on both sides, and the other side is ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from models_cache.errors import InferenceUnavailable

_CONNECT_SECONDS = 2.0
_MOST_IDLE = 32
_HEAD_BYTES = 64 << 10
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class HttpAnswer:
    """Status and body of an answer."""

    status: int
    body: bytes


class _Stale(Exception):
    """A connection that was kept had been closed by the other side before it answered."""


_FAILURES = (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError, _Stale)


@dataclass(frozen=True, eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_open(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing())


class HttpConnections:
    """Connections to one address; used from one event loop.

    Args:
        url: `unix:///path/of.sock` or `http://host:port`.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._host = (self._url.netloc or "inference").encode()
        self._idle: deque[_Connection] = deque()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Send a request and return its answer; cancelling it hangs up.

        A kept connection that turns out to be closed is replaced once: calls may be repeated.

        Raises:
            InferenceUnavailable: Nobody listens, or no whole answer came in time.
        """
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            b"%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n"
            % (method.encode(), path.encode(), self._host, len(body), more.encode())
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_seconds):
                while kept := self._take_idle():
                    with suppress(_Stale):
                        return await self._exchange(kept, head, body)
                return await self._exchange(await self._open(), head, body)
        except _FAILURES as error:
            raise InferenceUnavailable(type(error).__name__.strip("_")) from error

    def close(self) -> None:
        """Close every connection that is not in use."""
        while self._idle:
            self._idle.pop().writer.close()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.writer.close()
        return None

    async def _open(self) -> _Connection:
        async with asyncio.timeout(_CONNECT_SECONDS):
            if self._url.scheme == "unix":
                opened = await asyncio.open_unix_connection(self._url.path, limit=_HEAD_BYTES)
            else:
                host, port = self._url.hostname, self._url.port
                opened = await asyncio.open_connection(host, port, limit=_HEAD_BYTES)
        return _Connection(*opened)

    async def _exchange(self, connection: _Connection, head: bytes, body: bytes) -> HttpAnswer:
        try:
            connection.writer.writelines((head, body))
            with suppress(ConnectionError):  # refused while it was sent: the answer says why
                await connection.writer.drain()
            answer, is_kept = await _answer(connection.reader)
        except BaseException:
            connection.writer.transport.abort()
            raise
        if is_kept and len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.writer.close()
        return answer


async def _answer(reader: asyncio.StreamReader) -> tuple[HttpAnswer, bool]:
    """Read an answer; tell, too, whether the connection may be used again."""
    try:
        head = await reader.readuntil(_HEAD_END)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        if not getattr(error, "partial", b""):
            raise _Stale from error
        raise
    status_line, *lines = head[: -len(_HEAD_END)].lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    if b"content-length" not in headers:
        raise ValueError("an answer without a length")
    body = await reader.readexactly(int(headers[b"content-length"]))
    answer = HttpAnswer(int(status_line.split(b" ", 2)[1]), body)
    return answer, headers.get(b"connection") != b"close"
