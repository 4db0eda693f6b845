"""Queues the fetching of pretrained weights: asked for, or missed where they were once."""

from __future__ import annotations

import uuid_utils.compat as uuids
from sqlalchemy import Connection

from jobs.store import jobs
from jobs.store.jobs import Job

TYPE = "download"
_LOOKED_AT = 200


def queue(connection: Connection, architecture: str, weights: str, project: str) -> None:
    """Queue the fetching of weights, unless it is queued or running.

    Args:
        connection: In a writing transaction.
        architecture: torchvision's builder of the backbone.
        weights: Name of the weights in the catalogue.
        project: Who asked.
    """
    spec = _spec(architecture, weights)
    if all(job.spec != spec for job in jobs.unfinished_of_type(connection, TYPE)):
        new = jobs.NewJob(id=f"job_{uuids.uuid7().hex}", type=TYPE, spec=spec, project=project)
        jobs.accept(connection, new)


def newest(connection: Connection, architecture: str, weights: str) -> Job | None:
    """Return the last try to fetch weights, if it is among the newest of all."""
    spec = _spec(architecture, weights)
    tries = jobs.newest_of_type(connection, TYPE, _LOOKED_AT)
    return next((job for job in tries if job.spec == spec), None)


def _spec(architecture: str, weights: str) -> dict[str, str]:
    return {"architecture": architecture, "weights": weights}
