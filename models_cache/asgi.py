"""The little of HTTP that the inference process needs instead of a web framework.

Knows neither models nor torch: bodies that stay within a bound, JSON answers, clients that hang
up, and the socket to listen at.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from models_cache import logs, tracing
from models_cache.errors import InferenceAddressInvalid, PredictTooLarge

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Answer = TypeVar("_Answer")

MAX_UNIX_PATH_BYTES = 107  # sun_path holds 108 with the final zero


class ClientGone(Exception):
    """The client hung up: nobody waits for an answer any more."""


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> memoryview:
    """Return the request's body; one that declares to be too long is refused unread.

    Raises:
        PredictTooLarge: It has more than `limit_bytes`.
        ClientGone: The client hung up before its end.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > limit_bytes:
        raise PredictTooLarge(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise PredictTooLarge(limit_bytes)
        if not message.get("more_body", False):
            return memoryview(body)


async def unless_client_gone(work: Coroutine[Any, Any, _Answer], receive: Receive) -> _Answer:
    """Return the result of `work`; cancel it as soon as the client hangs up.

    Raises:
        ClientGone: It did.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())  # after the body, the next message is the hang-up
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)  # it lets go of what it holds


def trail() -> dict[str, str]:
    """Return the headers by which a call to another process is found in logs and among spans."""
    request_id = logs.facts().get("request_id")
    known = {} if request_id is None else {"x-request-id": str(request_id)}
    return {**known, **tracing.carrier()}


@contextmanager
def followed(scope: Scope) -> Iterator[None]:
    """Have what a call does say which request it is for, as `trail` told."""
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    request_id = headers.get("x-request-id")
    with (
        logs.about(**({} if request_id is None else {"request_id": request_id})),
        tracing.span(f"{scope['method']} {scope['path']}", headers),
    ):
        yield


def as_json(value: object) -> bytes:
    """Return the JSON of a value; the encoder holds the interpreter, so large ones go in parts."""
    return json.dumps(value, allow_nan=False).encode()


async def respond(
    send: Send, status: int, body: bytes, media_type: bytes = b"application/json"
) -> None:
    """Send an answer; 503 says when to try again."""
    headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def listen(bind: str) -> socket.socket:
    """Return a bound socket for `unix:///path` or `http://host:port`.

    A unix socket is private to the user. The file that a killed process left is replaced; one that
    somebody still listens at is not.

    Raises:
        InferenceAddressInvalid: The address is malformed, too long, in use or not ours.
    """
    url = urlsplit(bind)
    try:
        if url.scheme == "unix" and url.path and not url.netloc:
            return _listen_unix(Path(url.path))
        if url.scheme == "http" and url.hostname and url.port is not None:
            family = socket.AF_INET6 if ":" in url.hostname else socket.AF_INET
            return socket.create_server((url.hostname, url.port), family=family)
    except (OSError, ValueError) as error:
        raise InferenceAddressInvalid(bind, str(error)) from error
    raise InferenceAddressInvalid(bind, "it is neither unix:///path nor http://host:port")


def _listen_unix(path: Path) -> socket.socket:
    length_bytes = len(str(path).encode())
    if length_bytes > MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"the path has {length_bytes} bytes, the system allows {MAX_UNIX_PATH_BYTES}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ValueError("another process listens there")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before it listens: nobody connects in between
    except OSError:
        listener.close()
        raise
    return listener
