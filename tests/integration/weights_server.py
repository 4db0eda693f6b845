"""A real HTTP server on a loopback port that offers files, well or badly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.threaded_server import serving


@dataclass
class Offer:
    """How one path is answered.

    Args:
        body: The file.
        etag: Sent as it is; None for no validator at all.
        status: Other than 200: sent without the file.
        cuts: For each request in turn, after how many bytes the connection ends; then never.
        ranges: Whether `Range` is honoured; `refuse` answers 416.
        location: Where a redirect leads.
        hold: If set, the body is sent when the event is set.
    """

    body: bytes = b""
    etag: str | None = '"one"'
    status: int = 200
    content_type: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    ranges: str = "honour"
    location: str | None = None
    hold: threading.Event | None = None


@dataclass
class Request:
    """What a client asked."""

    path: str
    range: str | None
    if_range: str | None


class WeightsServer(ThreadingHTTPServer):
    """Answers by the table `offers`; remembers every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.offers: dict[str, Offer] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: WeightsServer

    def do_GET(self) -> None:
        self.server.requests.append(
            Request(self.path, self.headers.get("Range"), self.headers.get("If-Range"))
        )
        offer = self.server.offers.get(self.path.lstrip("/"))
        if offer is None or offer.status != 200:
            self._send_status(offer)
            return
        start = self._start(offer)
        if start is None:
            self.send_error(416)
            return
        if offer.hold is not None:
            assert offer.hold.wait(30)
        self.send_response(206 if start else 200)
        if start:
            last = len(offer.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(offer.body)}")
        self.send_header("Content-Length", str(len(offer.body) - start))
        self.send_header("Content-Type", offer.content_type)
        if offer.etag is not None:
            self.send_header("ETag", offer.etag)
        self.end_headers()
        end = start + offer.cuts.pop(0) if offer.cuts else len(offer.body)
        self.wfile.write(offer.body[start:end])

    def _start(self, offer: Offer) -> int | None:
        asked = self.headers.get("Range")
        if asked is None or offer.ranges == "ignore":
            return 0
        if offer.ranges == "refuse":
            return None
        if self.headers.get("If-Range") != offer.etag:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _send_status(self, offer: Offer | None) -> None:
        self.send_response(offer.status if offer else 404)
        if offer and offer.location:
            self.send_header("Location", offer.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def weights_server() -> Iterator[WeightsServer]:
    """Yield a running server."""
    with serving(WeightsServer()) as server:
        yield server
