"""HEAD of a stream that never ends: headers, and whoever makes it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from service.middleware import HeadAsGet


def test_head_of_an_endless_stream_ends_with_its_headers() -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data"
                await asyncio.sleep(0.001)
        finally:
            stopped.set()

    def stream(_: Request) -> StreamingResponse:
        return StreamingResponse(endless(), media_type="text/event-stream")

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def ask() -> None:
        app = HeadAsGet(Starlette(routes=[Route("/", stream, methods=["GET"])]))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "method": "HEAD",
            "path": "/",
            "headers": [],
            "query_string": b"",
        }
        await asyncio.wait_for(app(scope, receive, send), 30)
        await asyncio.wait_for(stopped.wait(), 30)

    asyncio.run(ask())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 200
    assert sent[1] == {"type": "http.response.body", "body": b"", "more_body": False}
