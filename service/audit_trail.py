"""Notes every call that changes something, and every one that is refused, in the audit log."""

from __future__ import annotations

from jobs.keys import Scope, without_keys
from jobs.store.database import utc_now
from service import middleware
from service.access import address_of, need_of
from service.audit import AuditLog
from service.callers import Caller
from service.middleware import Application, Message, Receive, Send
from service.rates import Rates

_NO_ROUTE = "none"
_REFUSED = frozenset({401, 403, 429})
_REFUSALS_PER_MINUTE = 60  # of a key or address: who knocks for ever must not push others out
_NOTED = frozenset({Scope.TRAIN, Scope.ADMIN})


class AuditTrail:
    """Writes an entry before the head of the answer is sent.

    Looking and predicting are not noted: the access log has a line of each.

    Args:
        app: What handles requests.
        log: Where entries go.
    """

    def __init__(self, app: Application, log: AuditLog) -> None:
        self._app = app
        self._log = log
        self._refusals = Rates()

    async def __call__(self, scope: middleware.Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = False

        async def sending(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._note(scope, message["status"], dict(message["headers"]))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if not answered:
                self._note(scope, 500, {})
            raise

    def _note(self, scope: middleware.Scope, status: int, headers: dict[bytes, bytes]) -> None:
        route = getattr(scope.get("route"), "path", _NO_ROUTE)
        refused = status in _REFUSED
        if not refused and (route == _NO_ROUTE or need_of(scope["method"], route) not in _NOTED):
            return
        address = address_of(scope)
        state = scope.get("state", {})
        caller = state.get("caller")
        assert caller is None or isinstance(caller, Caller)
        who = (caller and caller.key_id) or address
        if refused and self._refusals.take(who, _REFUSALS_PER_MINUTE) is not None:
            return
        made = headers.get(b"location")
        self._log.append(
            {
                "at": utc_now().isoformat(timespec="milliseconds"),
                "key": caller and caller.key_id,
                "project": caller and caller.project,
                "address": address,
                "call": f"{scope['method']} {route}",
                "path": without_keys(scope["path"])[:200],
                "status": status,
                "outcome": "refused" if refused else "done" if status < 400 else "failed",
                "made": made and made.decode("latin-1"),
                "request_id": state.get("request_id"),
            }
        )
