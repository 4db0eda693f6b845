"""Errors of outgoing requests.

* EgressError                    a request of ours to another host cannot be made
  + ForbiddenUrl, EgressFailed
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class EgressError(GraftError):
    """A request of ours to another host cannot be made."""

    code = "egress-error"


@leaf
class ForbiddenUrl(EgressError):
    """An address that this service does not connect to."""

    code = "forbidden-url"
    sentence = "this service does not connect to {place}: {reason}"
    place: str
    reason: str


@leaf
class EgressFailed(EgressError):
    """The other side did not answer, or not as HTTP says; `kind` is stable, `reason` is not."""

    code = "egress-failed"
    sentence = "no answer from {place}: {reason}; check that it can be reached from here"
    place: str
    kind: str
    reason: str
