"""Deadlines and bounds on what strangers may hold open, enforced by the api process itself.

uvicorn waits for ever for a head, a body or a reader, and takes as many connections as there are
file descriptors. Here every wait for a client ends: a head has a deadline; a body, and an answer
that is being read, have a minimum rate; beyond the most connections the one that has waited
longest without a request makes room.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import struct
import termios
import time
from collections.abc import Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.connection_limits import ConnectionLimits
from service.errors import TooManyUploads
from service.http_parser import Refusal, RequestParser
from service.middleware import Application

log = logging.getLogger("graft.http")

_NOT_STARTED = 3  # as uvicorn's own status
_LINGER_SECONDS = 5.0  # in which what was refused may still be sent, so that the answer is seen
_LINGER_BYTES = 8 << 20

_LATE_HEAD = Refusal(408, "request-timeout", "the head of the request took too long")
_LATE_BODY = Refusal(408, "request-timeout", "the body of the request came too slowly")
_FULL = Refusal(503, "too-many-connections", "too many connections are open; try again soon")


def run_server(
    application: Application,
    host: str,
    port: int,
    limits: ConnectionLimits,
    trusted_proxies: Sequence[str],
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Args:
        application: What handles requests.
        host: Where to listen.
        port: Where to listen.
        limits: What clients may hold open.
        trusted_proxies: Addresses and networks; what `X-Forwarded-For` says counts from them alone.

    Raises:
        SystemExit: It could not listen.
    """
    listener = Listener(limits)
    config = Config(
        application,
        host=host,
        port=port,
        http=listener.protocol,  # type: ignore[arg-type]  # called, never asked for its bases
        ws="none",
        loop="uvloop",
        backlog=limits.backlog,
        callback_notify=listener.check,
        timeout_notify=0,  # at every second's tick
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),  # else uvicorn reads the environment
        timeout_graceful_shutdown=8,
        timeout_keep_alive=75,
    )
    server = Server(config)
    server.run()
    if not server.started:
        raise SystemExit(_NOT_STARTED)


class Listener:
    """The connections of one api process; uvicorn's `http` class is made by `protocol`.

    Args:
        limits: What clients may hold open.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._connections: dict[WatchedConnection, None] = {}
        self._uploading: set[WatchedConnection] = set()
        self._too_many_uploads = Refusal(
            503, TooManyUploads.code, str(TooManyUploads(limits.uploads)), lingers=True
        )

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> WatchedConnection:
        """Return the protocol of a new connection; has the signature that uvicorn calls."""
        return WatchedConnection(self, config, server_state, app_state, _loop)

    def opened(self, connection: WatchedConnection) -> None:
        """Count a new connection; close the one that waited longest if there are too many."""
        held = list(self._connections)
        if len(held) >= self.limits.connections:
            held = [other for other in held if not other.is_gone]
        if len(held) >= self.limits.connections:
            waiting = [other for other in held if other.may_make_room]
            if not waiting:
                connection.refuse(_FULL)
                return
            min(waiting, key=lambda other: other.waiting_since or 0.0).drop()
        self._connections[connection] = None

    def closed(self, connection: WatchedConnection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)
        self._uploading.discard(connection)

    def uploads(self, connection: WatchedConnection, *, is_upload: bool) -> None:
        """Note whether a body is arriving over a connection: the application keeps it in a file."""
        (self._uploading.add if is_upload else self._uploading.discard)(connection)

    def refusal_of_uploads(self, but_for: WatchedConnection | None = None) -> Refusal | None:
        """Return why no more may begin now, or why this one may not go on beside the others."""
        is_free = but_for in self._uploading or len(self._uploading) < self.limits.uploads
        return None if is_free else self._too_many_uploads

    async def check(self) -> None:
        """End the waits that are over; called about once a second."""
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.check(now):
                await asyncio.sleep(0)  # ending hundreds of waits takes a while


class WatchedConnection(H11Protocol):
    """One connection, whose client may not be waited for without end."""

    conn: RequestParser
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request

    def __init__(
        self,
        listener: Listener,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self.conn = RequestParser(listener.refusal_of_uploads)
        self._listener = listener
        self._limits = listener.limits
        self._checked = time.monotonic()
        self._patience_seconds = self._limits.grace_seconds
        self._head_since: float | None = self._checked
        self._read_bytes = 0  # of the answers, by the client's kernel
        self._lingered_bytes = 0
        self._answered_at: float | None = None
        self._is_deaf = False  # to what comes behind an answer
        self._was_incomplete = False  # the body, at the last check
        #: Since when there is no request, None while there is one.
        self.waiting_since: float | None = self._checked

    @property
    def is_gone(self) -> bool:
        """Whether it is closed but for the event loop's next turn."""
        return self.transport.is_closing() and not self.transport.get_write_buffer_size()

    @property
    def may_make_room(self) -> bool:
        """Whether it is open and idle: no request, and nothing unread of the last answer."""
        is_idle = self.waiting_since is not None and not self.transport.get_write_buffer_size()
        return is_idle and not self.transport.is_closing()

    # -- what uvicorn and the event loop call ------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to watch the connection."""
        super().connection_made(transport)
        self._listener.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._listener.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and note what is waited for now."""
        if self.transport.is_closing():
            return
        self._earn(len(data))
        if self._answered_at is not None:
            self._lingered_bytes += len(data)
        if self._is_deaf:
            return
        if parsed := self.conn.gather(data):  # hundreds of clients may drip bytes
            super().data_received(parsed)
            self._note_state()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one's body."""
        super().on_response_complete()
        self._note_state()

    def send_400_response(self, _msg: str) -> None:
        """Refuse what the parser refused."""
        self.refuse(self.conn.refusal)

    # -- ending waits ------------------------------------------------------------------------

    def check(self, now: float) -> bool:
        """End the wait for this client if it has lasted too long; tell whether it had.

        Args:
            now: Of the monotonic clock.
        """
        seconds, self._checked = now - self._checked, now
        if self.transport.get_write_buffer_size():
            self._check_reader(seconds)
        elif self._answered_at is not None:
            is_over = now - self._answered_at > _LINGER_SECONDS
            if is_over or self._lingered_bytes > _LINGER_BYTES:
                self.drop()
        elif self.conn.their_state is h11.SEND_BODY:
            if not self.flow.read_paused and self._has_lost_patience(seconds):
                self.refuse(_LATE_BODY)
            elif self._was_incomplete:
                self._count_as_upload()
            self._was_incomplete = True
        elif self._head_since is not None and now - self._head_since > self._limits.head_seconds:
            self.refuse(_LATE_HEAD)
        return self.transport.is_closing()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a problem document, if nothing was answered yet, and close."""
        log.info("%s: %s", refusal.code, refusal.detail)
        may_answer = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if may_answer and not self.transport.is_closing():
            self.transport.write(_answer_of(refusal))
        if refusal.lingers:
            self._forsake()
            self._is_deaf, self._answered_at = True, time.monotonic()
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection; a request in progress learns that its client is gone."""
        self._forsake()
        self._unset_keepalive_if_required()
        self.transport.close()

    def _forsake(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _note_state(self) -> None:
        if self._is_deaf:
            return
        now = time.monotonic()
        is_answered = self.cycle is None or self.cycle.response_complete
        if not is_answered:
            if self.waiting_since is not None:
                self._patience_seconds = self._limits.grace_seconds
            self.waiting_since = self._answered_at = None
        elif self.waiting_since is None:
            self.waiting_since = now
        if is_answered and self.cycle is not None and self.conn.their_state is h11.SEND_BODY:
            if self._answered_at is None:
                self._answered_at, self._lingered_bytes = now, 0
        else:
            self._answered_at = None
        self._listener.uploads(self, is_upload=self.conn.is_upload and not is_answered)
        self._was_incomplete = False
        self._note_head(now)

    def _note_head(self, now: float) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._head_since = None
        elif self._head_since is None and self.conn.trailing_data[0]:
            self._head_since = now

    def _count_as_upload(self) -> None:
        """Note that even a short body arrives for a while; refuse it if many others do."""
        refusal = self._listener.refusal_of_uploads(but_for=self)
        if refusal is None:
            self._listener.uploads(self, is_upload=True)
        else:
            self.refuse(refusal)

    def _check_reader(self, seconds: float) -> None:
        unsent_bytes = self.transport.get_write_buffer_size() + self._kernel_bytes()
        read_bytes = self.conn.sent_bytes - unsent_bytes
        self._earn(read_bytes - self._read_bytes)
        self._read_bytes = read_bytes
        if self._has_lost_patience(seconds):
            log.info("request-timeout: an answer was read too slowly")
            self.drop()
            self.transport.abort()  # closing would wait for the reader

    def _kernel_bytes(self) -> int:
        """Return how much the kernel keeps for the client: it takes megabytes at a time."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        try:
            answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except OSError:  # not told outside Linux
            return 0
        return int(struct.unpack("i", answer)[0])

    def _earn(self, count_bytes: int) -> None:
        """Grant time for bytes that moved; never more than the grace."""
        earned_seconds = count_bytes / self._limits.min_bytes_per_second
        self._patience_seconds = min(
            self._limits.grace_seconds, self._patience_seconds + earned_seconds
        )

    def _has_lost_patience(self, seconds: float) -> bool:
        self._patience_seconds -= seconds
        return self._patience_seconds < 0


@cache
def _answer_of(refusal: Refusal) -> bytes:
    """Return an answer that closes the connection; hundreds may be refused at once."""
    body = json.dumps(
        {
            "type": f"/problems/{refusal.code}",
            "title": refusal.code.replace("-", " ").capitalize(),
            "status": refusal.status,
            "detail": refusal.detail,
            "instance": "",
            "code": refusal.code,
            "errors": [],
            "request_id": None,
        }
    ).encode()
    head = [
        b"HTTP/1.1 %d %s" % (refusal.status, STATUS_PHRASES[refusal.status]),
        b"Content-Type: application/problem+json",
        b"Content-Length: %d" % len(body),
        b"X-Content-Type-Options: nosniff",
        b"Connection: close",
    ]
    if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
        head.append(b"Retry-After: 2")
    return b"\r\n".join([*head, b"", body])
