"""What else happens when a job moves: an ingest that ends without a result rejects its dataset.

What a training found in the images is noted with them, whatever became of the training. Whoever
asked to be told about a job's end gets a message into the outbox.

Every move of a job that may end it goes through `move`, whoever makes it (a request, a worker, the
recovery of a dead worker's jobs), so that no dataset stays `processing` without a job.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobs.errors import DatasetRejected
from jobs.states import TERMINAL, JobEvent, JobState
from jobs.store import datasets, jobs, webhooks
from jobs.store.jobs import Job, Lease
from jobs.webhooks.message import body_of, event_of
from models_cache.errors import to_wire

_CANCELLED = {"code": "cancelled", "facts": {}, "message": "the check of the upload was cancelled"}


def move(
    connection: Connection,
    job: Job,
    event: JobEvent,
    *,
    lease: Lease | None = None,
    changes: dict[str, Any] | None = None,
    report_sha256: str | None = None,
) -> Job:
    """Move a job as `jobs.transition` does, with what follows from it, in one transaction.

    Args:
        connection: In a writing transaction.
        job: Which job; its state is read again.
        event: What happened.
        lease: Given by a worker.
        changes: Further columns to write.
        report_sha256: What was found: by an ingest that has no result, or by a training.

    Raises:
        JobNotFound, IllegalTransition, LeaseLost: As `jobs.transition`.
    """
    moved = jobs.transition(
        connection, job.id, event, lease=lease, changes=changes, project=job.project
    )
    _announce(connection, moved)
    if moved.type == "ingest" and moved.status in (JobState.CANCELLED, JobState.FAILED):
        assert moved.dataset_id is not None, "an ingest job has a dataset"
        _reject_dataset(connection, moved.dataset_id, moved.error or _CANCELLED, report_sha256)
    if moved.type != "ingest" and moved.dataset_id is not None and report_sha256 is not None:
        datasets.set_examined(connection, moved.dataset_id, report_sha256)
    return moved


def _reject_dataset(
    connection: Connection, dataset_id: str, problem: dict[str, Any], report_sha256: str | None
) -> None:
    """Mark a dataset that was being checked as rejected, and fail the jobs that wait for it."""
    if not datasets.set_rejected(connection, dataset_id, problem, report_sha256):
        return
    changes = {"error": to_wire(DatasetRejected(dataset_id))}
    for waiting in jobs.waiting_for_dataset(connection, dataset_id):
        failed = jobs.transition(
            connection, waiting.id, JobEvent.FAIL, changes=changes, project=waiting.project
        )
        _announce(connection, failed)


def _announce(connection: Connection, job: Job) -> None:
    """Put the message about a job that has ended into the outbox, if someone is to be told."""
    if job.status not in TERMINAL:
        return
    webhook = webhooks.find(connection, job.id)
    if webhook is not None:
        webhooks.put(connection, webhook, event_of(job), body_of(job))
