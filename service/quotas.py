"""How much a project may have: asked in the transaction that would make more of it."""

from __future__ import annotations

from sqlalchemy import Connection

from jobs.store import datasets, feedback, jobs
from service.access_errors import QuotaExceeded
from service.callers import Caller

_RETRY_SECONDS = 60


def require_job(connection: Connection, caller: Caller) -> None:
    """Refuse one more job of a project that has as many as it may.

    Raises:
        QuotaExceeded: It has.
    """
    limit = caller.limits.unfinished_jobs
    if limit is None:
        return
    used = jobs.count_unfinished(connection, caller.project)
    if used >= limit:
        remedy = "wait for one to end or cancel it"
        raise QuotaExceeded("unfinished jobs", used, limit, remedy, _RETRY_SECONDS)


def require_dataset(connection: Connection, caller: Caller, more_bytes: int) -> None:
    """Refuse one more data set, of so many bytes.

    Raises:
        QuotaExceeded: The project has as many data sets or bytes as it may.
    """
    limit = caller.limits.datasets
    if limit is not None:
        used = datasets.count(connection, caller.project)
        if used >= limit:
            raise QuotaExceeded("data sets", used, limit, "delete some", _RETRY_SECONDS)
    require_bytes(connection, caller, more_bytes)


def require_bytes(connection: Connection, caller: Caller, more_bytes: int) -> None:
    """Refuse so many more bytes.

    Raises:
        QuotaExceeded: The project would have more than it may.
    """
    limit = caller.limits.stored_bytes
    if limit is None:
        return
    used = datasets.stored_bytes(connection, caller.project)
    used += feedback.stored_bytes(connection, caller.project)
    if used + more_bytes > limit:
        what = f"bytes, {more_bytes} more would come"
        raise QuotaExceeded(what, used, limit, "delete data sets", _RETRY_SECONDS)
