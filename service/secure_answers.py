"""Headers that tell browsers what an answer is not: a page to frame, a script, something to keep.

No header here or elsewhere allows another origin anything (CORS is off).
"""

from __future__ import annotations

from service.middleware import Application, Message, Receive, Scope, Send

#: Pages are the descriptions of the API; their scripts and styles come with them.
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_POLICY = b"default-src 'none'; frame-ancestors 'none'; sandbox"
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: Kept by browsers and proxies as they like: the same for everybody.
_PUBLIC_TYPES = (
    b"text/html",
    b"text/css",
    b"text/javascript",
    b"application/javascript",
)


class SecureAnswers:
    """Adds what a handler did not set itself; nothing is kept by caches unless it says so.

    Args:
        app: What handles requests.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _completed(list(message["headers"]))
            await send(message)

        await self._app(scope, receive, sending)


def _completed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = {name.lower(): value for name, value in headers}
    kind = given.get(b"content-type", b"")
    page = kind.startswith(b"text/html")
    policy = (b"content-security-policy", _PAGE_POLICY if page else _POLICY)
    keeping = () if kind.startswith(_PUBLIC_TYPES) else ((b"cache-control", b"no-store"),)
    wanted = (*_ALWAYS, policy, *keeping)
    return headers + [(name, value) for name, value in wanted if name not in given]
