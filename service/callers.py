"""Who calls: the project that all they see and make belongs to, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from jobs.keys import Limits, Scope


@dataclass(frozen=True)
class Caller:
    """Who sent a request that was let in.

    Args:
        project: Whose things it is about.
        scope: What it may do.
        limits: How much of it, the service's defaults filled in.
        key_id: Of the API key; None where no keys are asked for.
    """

    project: str
    scope: Scope
    limits: Limits
    key_id: str | None


async def caller_of(request: Request) -> Caller:
    """Return who sent a request, as `service.access.admit` noted before anything was read."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]
