"""Errors of who may call, and how often.

* AccessError                    the request was not let in
  + Unauthenticated, ScopeTooSmall, FirstKeyMissing, RateLimited, QuotaExceeded, DoorsOpen,
    AuditEntryNotFound
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class AccessError(GraftError):
    """The request was not let in."""

    code = "access-error"


@leaf
class Unauthenticated(AccessError):
    """There is no key with the request, or none that opens anything."""

    code = "unauthenticated"
    sentence = "{reason}; send `Authorization: Bearer graft_...`"
    reason: str
    presented: bool

    @property
    def challenge(self) -> str:
        """The header `WWW-Authenticate` (RFC 6750)."""
        return 'Bearer realm="graft"' + (', error="invalid_token"' if self.presented else "")


@leaf
class ScopeTooSmall(AccessError):
    """The key opens other calls, but not this one."""

    code = "forbidden"
    sentence = "this call needs {needed}; the API key {key_id} has scope `{scope}`"
    needed: str
    key_id: str
    scope: str

    @property
    def challenge(self) -> str:
        """The header `WWW-Authenticate` (RFC 6750)."""
        return 'Bearer realm="graft", error="insufficient_scope"'


@leaf
class FirstKeyMissing(AccessError):
    """Who needs no key cannot make one: the first is made on the machine."""

    code = "first-key-missing"
    sentence = (
        "there are no API keys yet, and the first one is made where the service runs: "
        "`graft keys create --scope admin`"
    )


@leaf
class RateLimited(AccessError):
    """More requests in a minute than are allowed."""

    code = "rate-limited"
    sentence = "more than {per_minute} {what} in a minute; try again in {retry_after_seconds} s"
    what: str
    per_minute: int
    retry_after_seconds: int


@leaf
class QuotaExceeded(AccessError):
    """The project has as much as the key allows."""

    code = "quota-exceeded"
    sentence = (
        "the project has {used} {what} and may have {limit}; {remedy}, or ask for a higher limit"
    )
    what: str
    used: int
    limit: int
    remedy: str
    retry_after_seconds: int


@leaf
class DoorsOpen(AccessError):
    """The service would listen where others can reach it, and there are no keys."""

    code = "doors-open"
    sentence = (
        "GRAFT_HOST={host} can be reached by others and there are no API keys; make the first one: "
        "`graft keys create --scope admin`, or set GRAFT_ALLOW_ANONYMOUS=1 if a proxy in front "
        "checks who calls"
    )
    host: str


@leaf
class AuditEntryNotFound(AccessError):
    """No such entry in the audit log, or it is gone with the oldest."""

    code = "audit-entry-not-found"
    sentence = "there is no entry {entry_id} in the audit log; begin with the newest, no `after`"
    entry_id: str
