"""Queues the building of faster engines: a job that nobody asked for and nobody waits for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import uuid_utils.compat as uuids
from sqlalchemy import Connection

from jobs.states import TERMINAL, JobState
from jobs.store import jobs
from jobs.store.database import utc_now

TYPE = "engine"
_AFTER = timedelta(seconds=5)  # the first prediction of the new model has the cores to itself
_LOOKED_AT = 200  # newest jobs of the type


def queue(connection: Connection, spec: dict[str, Any] | None, project: str) -> None:
    """Queue the building of an engine, unless it is queued, is being built, or cannot be.

    Args:
        connection: In a writing transaction.
        spec: What a training found to be missing; None if nothing is.
        project: Whose training it was.
    """
    if spec is None:
        return
    same = [job for job in jobs.newest_of_type(connection, TYPE, _LOOKED_AT) if job.spec == spec]
    if any(job.status not in TERMINAL or job.status is JobState.FAILED for job in same):
        return
    new = jobs.NewJob(
        id=f"job_{uuids.uuid7().hex}",
        type=TYPE,
        spec=spec,
        not_before=utc_now() + _AFTER,
        project=project,
    )
    jobs.accept(connection, new)
