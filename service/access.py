"""Who is let in to which call: the one dependency of the whole application.

A route that says nothing needs a key: one with scope `read` to look, one with `train` to change
anything. Whatever is otherwise stands in one table here.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal

from fastapi import FastAPI, Request

from jobs.keys import Scope, holds_key, is_well_formed
from jobs.store.tables import DEFAULT_PROJECT
from service.access_errors import AccessError, RateLimited, ScopeTooSmall, Unauthenticated
from service.callers import Caller
from service.services import IDEMPOTENCY_KEY, Services, ServicesDep

#: Beside a scope: everybody, or whoever runs the service (a key of project `default`).
Need = Scope | Literal["nothing", "operator"]

NEEDS: dict[tuple[str, str], Need] = {
    ("GET", "/healthz"): "nothing",
    ("GET", "/readyz"): "nothing",
    ("GET", "/v2/health/live"): "nothing",
    ("GET", "/v2/health/ready"): "nothing",
    ("GET", "/docs"): "nothing",
    ("GET", "/docs/oauth2-redirect"): "nothing",
    ("GET", "/redoc"): "nothing",
    ("GET", "/metrics"): "operator",  # it counts what all projects do
    ("POST", "/v1/models/{reference}/predict"): Scope.READ,
    ("POST", "/v1/models/{reference}/embed"): Scope.READ,
    ("POST", "/v1/models/{reference}/similar"): Scope.READ,
    ("POST", "/v2/models/{reference}/infer"): Scope.READ,
    ("POST", "/v2/models/{name}/versions/{number}/infer"): Scope.READ,
    ("POST", "/hf/{reference}"): Scope.READ,
    ("GET", "/v1/keys"): Scope.ADMIN,
    ("POST", "/v1/keys"): Scope.ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): Scope.ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): Scope.ADMIN,
    ("GET", "/v1/audit"): Scope.ADMIN,
}


def need_of(method: str, route: str) -> Need:
    """Return what a call needs, by its method and the template of its path."""
    return NEEDS.get((method, route), Scope.READ if method in ("GET", "HEAD") else Scope.TRAIN)


async def admit(request: Request, services: ServicesDep) -> None:
    """Let a request in and note who sent it, before anything of it is read.

    Raises:
        Unauthenticated: A key is needed, and there is none that opens anything.
        ScopeTooSmall: The key opens other calls.
        RateLimited: The key, or an address without a good one, came too often.
    """
    need = need_of(request.method, request.scope["route"].path)
    if need == "nothing" or (need == "operator" and services.settings.public_metrics):
        return
    caller = await _caller(request, services)
    request.state.caller = caller
    per_minute = caller.limits.requests_per_minute
    if per_minute is not None:
        wait = services.rates.take(caller.key_id or address_of(request.scope), per_minute)
        if wait is not None:
            raise RateLimited("requests", per_minute, wait)
    _require(caller, need)


def _require(caller: Caller, need: Need) -> None:
    if need == "operator":
        if caller.project != DEFAULT_PROJECT:
            needed = f"a key of project `{DEFAULT_PROJECT}`"
            raise ScopeTooSmall(needed, str(caller.key_id), caller.scope.value)
    elif need != "nothing" and not caller.scope.covers(need):
        raise ScopeTooSmall(f"scope `{need}`", str(caller.key_id), caller.scope.value)


async def _caller(request: Request, services: Services) -> Caller:
    """Return who sent a request."""
    nobody = await services.key_ring.without_key()
    if nobody is not None:  # no keys: whatever a client sends as one means nothing
        return nobody
    written_down = [request.url.path, request.url.query, *request.headers.getlist(IDEMPOTENCY_KEY)]
    if any(map(holds_key, written_down)):
        reason = "an API key stands where it is written down, as in the address: rotate it"
        raise Unauthenticated(reason, presented=True)
    headers = request.headers.getlist("authorization")
    if not headers:
        raise Unauthenticated("this call needs an API key", presented=False)
    kind, _, key = headers[0].partition(" ")
    if len(headers) > 1 or kind.lower() != "bearer" or not is_well_formed(key.strip()):
        raise _false_key(request, services, "what was sent is no API key, or has a typo")
    caller = await services.key_ring.with_key(key.strip())
    if caller is None:
        raise _false_key(request, services, "the API key is unknown, expired or revoked")
    return caller


def _false_key(request: Request, services: Services, reason: str) -> AccessError:
    """Return the error of a key that opens nothing; an address has so many tries in a minute.

    A key that is good always opens, so that nobody can lock out those behind the same proxy.
    """
    per_minute = services.settings.max_false_keys_per_minute
    wait = services.false_keys.take(address_of(request.scope), per_minute)
    if wait is not None:
        return RateLimited("false API keys", per_minute, wait)
    return Unauthenticated(reason, presented=True)


def address_of(scope: MutableMapping[str, Any]) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return client[0] if client else "local"


def describe(app: FastAPI) -> None:
    """Say in the OpenAPI document what each call needs."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        new, document = app.openapi_schema is None, plain()
        if new:
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key."}
            for path, calls in document["paths"].items():
                for method, call in calls.items():
                    _describe(call, need_of(method.upper(), path))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says


def _describe(call: dict[str, Any], need: Need) -> None:
    if need == "nothing":
        return
    call["security"] = [{"key": []}]
    call["x-graft-needs"] = str(need)
    answers = {401: "No key that opens anything.", 403: "The key's scope is too small."}
    answers[429] = "Too often, or more than the key allows; `Retry-After` says when again."
    for status, description in answers.items():
        call["responses"].setdefault(str(status), {"description": description})
