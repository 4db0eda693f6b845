"""A real receiver of webhooks on a loopback port, which answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from tests.threaded_server import serving


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:  # noqa: ANN401 - any JSON
        """Return the body once the independent package has checked its signature."""
        Webhook(secret).verify(self.body, self.headers)
        return json.loads(self.body)


@dataclass
class _Plan:
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)


class Receiver(ThreadingHTTPServer):
    """Answers 204, or what `plan` says; a path in `plan.hanging` is not answered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan = _Plan()
        self.received: list[Received] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def port(self) -> int:
        return self.server_port

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with server.lock:
            server.received.append(Received(self.path, headers, body))
            status = server.plan.statuses.pop(0) if server.plan.statuses else 204
        if self.path in server.plan.hanging:
            server.closing.wait(30)
        with server.lock:
            server.at_once -= 1
        with suppress(OSError):
            self.send_response(status)
            for name, value in server.plan.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Yield a running receiver."""
    with serving(Receiver()) as server:
        try:
            yield server
        finally:
            server.closing.set()
