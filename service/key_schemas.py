"""Bodies of the calls about API keys and the audit log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from jobs.issuing import Issued, Wish
from jobs.keys import Limits, Scope
from jobs.store.keys import ApiKey
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

    def wish(self, project: str) -> Wish:
        """Return what is to be made for a project.

        Raises:
            ValidationFailed: The name cannot be shown.
        """
        seconds = self.expires_in_seconds
        return Wish(
            project,
            checked_name(self.name, "/name"),
            Scope(self.scope),
            Limits(**self.limits.model_dump()),
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


def _fields(key: ApiKey) -> dict[str, object]:
    names = set(KeyBody.model_fields) - {"object", "limits"}
    return {**{name: getattr(key, name) for name in names}, "limits": key.limits.as_json()}
