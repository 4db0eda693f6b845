"""Calls about API keys, each for the project of the key that it is made with."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Response

from jobs.issuing import issue, renew
from jobs.store import keys
from service.access_errors import FirstKeyMissing
from service.callers import CallerDep
from service.json_body import json_body, json_request
from service.key_schemas import IssuedKeyBody, KeyBody, KeyRequest, RotateRequest
from service.schemas import Page
from service.services import After, IdPath, Limit, ServicesDep

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201, openapi_extra=json_request(KeyRequest))
def create_key(
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    body: Annotated[KeyRequest, json_body(KeyRequest)],
) -> IssuedKeyBody:
    """Make an API key; its secret is in this answer only, so a repeated request makes another."""
    if caller.key_id is None:
        raise FirstKeyMissing
    wish = body.wish(caller, services.settings.key_limits)
    with services.database.write("key_create") as connection:
        issued = issue(connection, wish)
    response.headers["Location"] = f"/v1/keys/{issued.key.id}"
    return IssuedKeyBody.of_issued(issued)


@router.get("")
def list_keys(
    services: ServicesDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[KeyBody]:
    """List the project's API keys, newest first, those that have ended too."""
    with services.database.read() as connection:
        found = keys.page(connection, limit + 1, after, caller.project)
    return Page.of([KeyBody.of(key) for key in found], limit)


@router.delete("/{key_id}", status_code=204)
def revoke_key(services: ServicesDep, caller: CallerDep, key_id: IdPath) -> Response:
    """End an API key for good; repeating it changes nothing."""
    with services.database.write("key_revoke") as connection:
        keys.revoke(connection, key_id, caller.project)
    services.key_ring.forget()
    return Response(status_code=204)


@router.post("/{key_id}/rotate", openapi_extra=json_request(RotateRequest, required=False))
def rotate_key(
    services: ServicesDep,
    caller: CallerDep,
    key_id: IdPath,
    body: Annotated[RotateRequest, json_body(RotateRequest, default=True)],
) -> IssuedKeyBody:
    """Give an API key a new secret; the old one opens it, too, for `grace_seconds` more."""
    grace = timedelta(seconds=body.grace_seconds)
    with services.database.write("key_rotate") as connection:
        issued = renew(connection, key_id, caller.project, grace)
    services.key_ring.forget()
    return IssuedKeyBody.of_issued(issued)
