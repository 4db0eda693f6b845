"""The one way out: every request of this project to another host is made here.

A URL is read strictly, its name resolved once, every address judged (`models_cache.egress_policy`),
and the connection made to a judged address: a name that resolves differently a moment later
changes nothing. TLS is verified against the name. Redirects are followed by this loop, each judged
like a first request, and only where the caller allows it; bodies are never decompressed. Nothing
is read from the environment but the certificates to trust (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import httpcore2

from models_cache.egress_errors import EgressFailed
from models_cache.egress_policy import Address, EgressPolicy, Target, read_url

Resolve = Callable[[str, int], Sequence[Address]]

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OWN_HEADERS = {"User-Agent": "graft", "Accept-Encoding": "identity"}
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
_FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.TimeoutException,
)


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One request.

    Args:
        method: In capitals; only a GET is redirected.
        url: Without credentials.
        headers: Beside our own.
        body: Of a POST.
        connect_seconds: Until a connection must stand.
        idle_seconds: Without a single byte.
        total_seconds: From the first look at the name to the last byte.
        may_follow: Tells whether a redirect may lead to a URL; None: none is followed.
    """

    url: str
    total_seconds: float
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    connect_seconds: float = 5.0
    idle_seconds: float = 30.0
    may_follow: Callable[[str], bool] | None = None


class Answer:
    """An answer whose body is unread.

    Args:
        status: HTTP status.
        headers: By name in lower case; of repeated ones the first.
        url: Where it came from, after redirects.
        stream: Of the body, as it came over the wire.
    """

    def __init__(
        self, status: int, headers: Mapping[str, str], url: str, stream: Iterator[bytes]
    ) -> None:
        self.status = status
        self.headers = headers
        self.url = url
        self._stream = stream

    def chunks(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the body in pieces of at least `size_bytes`, the last one excepted.

        Raises:
            EgressFailed: The connection or the time ended; what came before was yielded.
        """
        kept = bytearray()
        failure: EgressFailed | None = None
        try:
            with _told(read_url(self.url)):
                for piece in self._stream:
                    kept += piece
                    if len(kept) >= size_bytes:
                        yield bytes(kept)
                        kept.clear()
        except EgressFailed as error:
            failure = error
        if kept:
            yield bytes(kept)
        if failure is not None:
            raise failure

    def beginning(self, most_bytes: int) -> bytes:
        """Return the first bytes of the body; the rest is not read.

        Raises:
            EgressFailed: The connection or the time ended.
        """
        found = bytearray()
        for chunk in self.chunks(1):
            found += chunk
            if len(found) >= most_bytes:
                break
        return bytes(found[:most_bytes])


def resolve_name(host: str, port: int) -> list[Address]:
    """Return the addresses of a host, in the order in which the system would try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))


@contextmanager
def exchange(
    policy: EgressPolicy, outgoing: Outgoing, resolve: Resolve = resolve_name
) -> Iterator[Answer]:
    """Yield the answer to a request, its body unread; the connection ends with the block.

    Args:
        policy: Where it may lead.
        outgoing: The request.
        resolve: Names to addresses; asked once per connection.

    Raises:
        ForbiddenUrl: It, or a redirect, leads where nothing may; nothing was connected to.
        EgressFailed: There was no answer in time, or a redirect that is not followed.
    """
    deadline = time.monotonic() + outgoing.total_seconds
    hop = outgoing
    for _ in range(MAX_REDIRECTS + 1):
        with _one(policy, hop, deadline, resolve) as answer:
            location = answer.headers.get("location")
            final = answer.status not in _REDIRECTS or location is None
            if final or hop.may_follow is None:
                yield answer
                return
        assert location is not None, "a redirect has a location"
        hop = _redirected(hop, location)
    raise _redirect_failure(outgoing.url, f"more than {MAX_REDIRECTS} redirects")


@contextmanager
def _one(
    policy: EgressPolicy, outgoing: Outgoing, deadline: float, resolve: Resolve
) -> Iterator[Answer]:
    """Yield the answer of one host."""
    target = policy.check(outgoing.url)
    with _told(target):
        addresses = None if policy.proxy else _judged(policy, target, resolve)
        ends = _Ends(addresses, outgoing.connect_seconds, deadline)
        url = httpcore2.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), outgoing.idle_seconds)
        with (
            httpcore2.ConnectionPool(
                ssl_context=_trusted(),
                proxy=_proxy(policy.proxy) if policy.proxy else None,
                max_connections=1,
                network_backend=ends,
            ) as pool,
            pool.stream(
                outgoing.method,
                url,
                headers=_header_pairs(target, outgoing),
                content=outgoing.body if outgoing.method == "POST" else None,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            headers: dict[str, str] = {}
            for name, value in response.headers:
                headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
            yield Answer(response.status, headers, outgoing.url, response.iter_stream())


def _judged(policy: EgressPolicy, target: Target, resolve: Resolve) -> list[Address]:
    """Return the addresses of a host, all of them allowed."""
    try:
        addresses = list(resolve(target.host, target.port))
    except OSError as error:
        raise EgressFailed(target.origin, "no-answer", "its name has no address") from error
    policy.judge(target, addresses)
    return addresses


def _redirected(hop: Outgoing, location: str) -> Outgoing:
    url = urldefrag(urljoin(hop.url, location))[0]
    before, after = read_url(hop.url), read_url(url)
    assert hop.may_follow is not None, "asked before"
    if (before.scheme, after.scheme) == ("https", "http") or not hop.may_follow(url):
        raise _redirect_failure(hop.url, f"it redirects to {after.origin}, which is not allowed")
    headers = hop.headers
    if before.origin != after.origin:
        headers = {k: v for k, v in headers.items() if k.lower() not in _CREDENTIALS}
    return replace(hop, url=url, headers=headers)


def _redirect_failure(url: str, reason: str) -> EgressFailed:
    return EgressFailed(read_url(url).origin, "redirect", reason)


class _Ends(httpcore2.NetworkBackend):
    """Connects to judged addresses only, in turn; everything ends at the deadline."""

    def __init__(
        self, addresses: Sequence[Address] | None, connect_seconds: float, deadline: float
    ) -> None:
        self._addresses = addresses
        self._connect_seconds = connect_seconds
        self._deadline = deadline
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - ours is `connect_seconds`
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address that answers; to the proxy's name if there is one."""
        hosts = [host] if self._addresses is None else [str(a) for a in self._addresses]
        failure: Exception = httpcore2.ConnectError("it has no address")
        for each in hosts:
            seconds = _left(self._deadline, self._connect_seconds)
            try:
                stream = self._sockets.connect_tcp(
                    each, port, seconds, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._deadline)
        raise failure


class _Stream(httpcore2.NetworkStream):
    """A stream that ends at a deadline, however slowly bytes come."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read."""
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write."""
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        """Close."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """Go on in TLS, the certificate checked against the name."""
        seconds = _left(self._deadline, timeout)
        return _Stream(
            self._stream.start_tls(ssl_context, server_hostname, seconds), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as in the base
        """Tell about the connection."""
        return self._stream.get_extra_info(info)


def _left(deadline: float, seconds: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time for the whole exchange is over")
    return left if seconds is None else min(left, seconds)


@contextmanager
def _told(target: Target) -> Iterator[None]:
    """Turn what the HTTP library raises into `EgressFailed`."""
    try:
        yield
    except _FAILURES as error:
        kind = "tls-failed" if _of_tls(error) else "no-answer"
        reason = f"{type(error).__name__}: {error}".strip(": ")[:200]
        raise EgressFailed(target.origin, kind, reason) from error


def _of_tls(error: BaseException) -> bool:
    cause = error.__cause__
    return isinstance(cause, ssl.SSLCertVerificationError) or (
        isinstance(error, httpcore2.ConnectError) and isinstance(cause, ssl.SSLError)
    )


@cache
def _trusted() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()


def _proxy(url: str) -> httpcore2.Proxy:
    parts = urlsplit(url)
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    return httpcore2.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/", auth)


def _header_pairs(target: Target, outgoing: Outgoing) -> list[tuple[bytes, bytes]]:
    all_headers = {**_OWN_HEADERS, "Host": _host_header(target), **outgoing.headers}
    return [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers.items()
    ]


def _host_header(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    standard = {"http": 80, "https": 443}[target.scheme] == target.port
    return host if standard else f"{host}:{target.port}"
