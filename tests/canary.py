"""Real listeners on loopback: one that only counts who connects, one that answers by its path."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

from tests.threaded_server import serving

_BIND_ATTEMPTS = 20


class Canary:
    """Counts the connections to one port of 127.0.0.1 and, where there is IPv6, of ::1."""

    def __init__(self) -> None:
        self.seen = 0
        self._listeners = self._bound()
        self.port: int = self._listeners[0].getsockname()[1]
        self._threads = [
            threading.Thread(target=self._accept, args=(each,), daemon=True)
            for each in self._listeners
        ]
        for thread in self._threads:
            thread.start()

    def _bound(self) -> list[socket.socket]:
        for _ in range(_BIND_ATTEMPTS):
            v4 = socket.create_server(("127.0.0.1", 0))
            try:
                v6 = socket.create_server(("::1", v4.getsockname()[1]), family=socket.AF_INET6)
            except OSError:
                if not socket.has_ipv6:
                    return [v4]
                v4.close()
                continue
            return [v4, v6]
        return [socket.create_server(("127.0.0.1", 0))]

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.seen += 1
                connection.close()

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join(5)


class _Handler(socketserver.StreamRequestHandler):
    """Answers `/ok`, `/to/<url>` (a redirect), `/drip`, `/drip-head`, `/endless`, `/heads`."""

    server: OddServer

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        self.server.heads.append(head)
        path = head.split(b" ")[1].decode()
        with suppress(OSError):
            self._answer(path)

    def _answer(self, path: str) -> None:
        send = self.connection.sendall
        if path.startswith("/to/"):
            place = unquote(path.removeprefix("/to/"))
            send(f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())
        elif path == "/drip":
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            self._forever(b"x", 0.05)
        elif path == "/drip-head":
            send(b"HTTP/1.1 200 OK\r\n")
            self._forever(b"x", 0.05)
        elif path == "/heads":
            send(b"HTTP/1.1 200 OK\r\n")
            self._forever(b"a: b\r\n" * 1000, 0.0)
        elif path == "/endless":
            send(b"HTTP/1.1 200 OK\r\n\r\n")
            self._forever(b"x" * 65536, 0.0)
        elif path == "/silent":
            time.sleep(5)
        else:
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def _forever(self, what: bytes, pause_seconds: float) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            self.connection.sendall(what)
            time.sleep(pause_seconds)


class OddServer(socketserver.ThreadingTCPServer):
    """Remembers the head of every request."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heads: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextmanager
def odd_server() -> Iterator[OddServer]:
    """Yield a running server."""
    with serving(OddServer()) as server:
        yield server
