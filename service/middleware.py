"""What happens around every request: its id, its log line, HEAD, and calls from a browser."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uuid_utils.compat as uuids
from starlette.requests import ClientDisconnect, Request

from jobs.keys import holds_key, without_keys
from models_cache import logs
from service.problems import GONE_STATUS, error_answer

log = logging.getLogger("graft.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Observe = Callable[[Scope, int, float], None]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestLog:
    """Gives each request an id, answers with it, and logs one line per request.

    The outermost layer, so that the answer to a bug of ours has an id too. A client that hangs up
    while it sends is no error: one line, no traceback.

    Args:
        app: What handles requests.
        observe: Told of every request: its scope, its status and its seconds.
    """

    def __init__(self, app: Application, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or uuids.uuid7().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = GONE_STATUS

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        with logs.about(request_id=request_id):
            try:
                await self._app(scope, receive, sending)
            except ClientDisconnect:
                pass
            finally:
                seconds = time.perf_counter() - started
                _log_request(scope, status, seconds, request_id)
                self._observe(scope, status, seconds)


class BrowserGuard:
    """Keeps web pages of strangers from using a service that listens on loopback without keys.

    A page may send requests to any address its browser reaches. Two rules stop it: a request that
    changes something must not come from another origin, and a name in `Host` must be a local one
    (a stranger's name that resolves to 127.0.0.1 is DNS rebinding).

    Args:
        app: What is guarded.
        local_names_only: Whether the `Host` rule holds: where only this machine can call.
    """

    def __init__(self, app: Application, *, local_names_only: bool) -> None:
        self._app = app
        self._local_names_only = local_names_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        reason = self._refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        answer = error_answer(Request(scope), 403, "forbidden-origin", reason, [])
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._local_names_only and not _is_local(host):
            return "this service answers to its own address only, not to a name in Host"
        origin = headers.get(b"origin")
        changes = scope["method"] not in _SAFE_METHODS
        if changes and origin is not None and origin.partition("://")[2] != host:
            return "a page of another origin may not change anything here"
        return None


class HeadAsGet:
    """Answers HEAD as GET would, without the body.

    A stream of events ends with its headers: whoever makes it is told that the client is gone.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()
        requests: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receiving() -> Message:
            if requests:
                return requests.pop()
            await answered.wait()
            return {"type": "http.disconnect"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        # Version 2.3 of the protocol: streams listen for the client's end
        asgi = {**scope["asgi"], "spec_version": "2.3"}
        await self._app({**scope, "method": "GET", "asgi": asgi}, receiving, sending)


def _log_request(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    method, path = scope["method"], ascii(without_keys(scope["path"])[:200])[1:-1]
    milliseconds = round(seconds * 1e3, 1)
    told = {"method": method, "path": path, "status": status, "duration_ms": milliseconds}
    line = "%s %s %d %.1fms %s"
    log.info(line, method, path, status, milliseconds, request_id, extra={"facts": told})


def _is_local(host: str) -> bool:
    """Tell whether a Host header is an address, or a name that always means this machine."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _given_id(scope: Scope) -> str | None:
    """Return the request id a proxy gave, if it is a harmless one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) and not holds_key(text) else None
    return None
