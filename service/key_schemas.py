"""Bodies of the calls about API keys and the audit log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from jobs.issuing import Issued, Wish
from jobs.keys import Limits, Scope
from jobs.store.keys import ApiKey
from jobs.store.tables import DEFAULT_PROJECT
from service.callers import Caller
from service.errors import ValidationFailed
from service.schemas import Request
from service.services import checked_name

_TEN_YEARS_SECONDS = 10 * 366 * 86_400
_MOST = 2**53
_Bound = Annotated[int | None, Field(ge=1, le=_MOST)]


class LimitsBody(Request):
    """How much a key may use; what is missing or null is as the service's settings say."""

    requests_per_minute: _Bound = None
    unfinished_jobs: _Bound = None
    datasets: _Bound = None
    stored_bytes: _Bound = None


class KeyRequest(Request):
    """`POST /v1/keys`."""

    name: str = Field(min_length=1, max_length=100, description="For people.")
    scope: Literal["read", "train", "admin"] = Field(description="Each may do what is before it.")
    expires_in_seconds: int | None = Field(None, ge=1, le=_TEN_YEARS_SECONDS)
    limits: LimitsBody = Field(default_factory=LimitsBody)

    def wish(self, caller: Caller, defaults: Limits) -> Wish:
        """Return what is to be made for the project of a caller.

        Args:
            caller: Who asks; a tenant's new key may not use more than the one that makes it.
            defaults: Limits of keys without own ones.

        Raises:
            ValidationFailed: The name cannot be shown, or a limit is beyond the caller's.
        """
        seconds, limits = self.expires_in_seconds, Limits(**self.limits.model_dump())
        return Wish(
            caller.project,
            checked_name(self.name, "/name"),
            Scope(self.scope),
            limits if caller.project == DEFAULT_PROJECT else _within(limits, caller, defaults),
            None if seconds is None else timedelta(seconds=seconds),
        )


class RotateRequest(Request):
    """`POST /v1/keys/{key_id}/rotate`."""

    grace_seconds: int = Field(
        86_400, ge=0, le=30 * 86_400, description="For so long the old secret opens the key, too."
    )


class KeyBody(BaseModel):
    """An API key, without its secret."""

    id: str
    object: Literal["key"] = "key"
    project: str
    name: str
    scope: str
    limits: dict[str, int] = Field(description="Those that are the key's own.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To a minute.")
    previous_until: datetime | None = Field(description="The secret before opens the key so long.")

    @classmethod
    def of(cls, key: ApiKey) -> KeyBody:
        """Make one of a row."""
        return cls(**_fields(key))


class IssuedKeyBody(KeyBody):
    """A key with its secret: the only answer that ever holds it."""

    key: str = Field(description="The secret. It is shown once and stored nowhere.")

    @classmethod
    def of_issued(cls, issued: Issued) -> IssuedKeyBody:
        """Make one of what was just made."""
        return cls(**_fields(issued.key), key=issued.secret)


class AuditEntryBody(BaseModel):
    """One call that changed something, or was refused."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    at: datetime
    key: str | None = Field(description="Id of the API key; null without one.")
    project: str | None = Field(description="Null if nobody was let in.")
    address: str
    call: str = Field(description="Method and route.")
    path: str
    status: int
    outcome: Literal["done", "refused", "failed"]
    made: str | None = Field(description="Address of what was made.")
    request_id: str | None


def _within(wished: Limits, caller: Caller, defaults: Limits) -> Limits:
    """Return limits with the caller's own where they would be left out."""
    found = {}
    for name, bound in caller.limits.as_json().items():
        wish, default = getattr(wished, name), getattr(defaults, name)
        if wish is not None and wish > bound:
            message = f"the key that makes this one has {bound}"
            raise ValidationFailed.one(f"/limits/{name}", "beyond-own", message)
        if wish is None and (default is None or default > bound):
            found[name] = bound
    return replace(wished, **found)


def _fields(key: ApiKey) -> dict[str, object]:
    names = set(KeyBody.model_fields) - {"object", "limits"}
    return {**{name: getattr(key, name) for name in names}, "limits": key.limits.as_json()}
