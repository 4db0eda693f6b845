"""Repeating a job to the bit: what the new job is told, and whether it worked.

A reproduction is told the values of a receipt instead of `auto` and `DEFAULT`; its child compares
its own receipt before it learns anything (`jobs.receipts`); here published weights are compared.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobs.errors import ReceiptMissing
from jobs.store import models
from jobs.store.jobs import Job
from models_cache.artifacts import MODEL_FILE


def spec_of_reproduction(job: Job) -> dict[str, Any]:
    """Return the spec of a job that repeats one that has ended; it moves no alias.

    Raises:
        ReceiptMissing: The job ended before its receipt was written, or is of another type.
    """
    receipt = job.resolved
    if receipt is None or job.type != "fine_tune":
        raise ReceiptMissing(job.id)
    weights = receipt["weights"]
    return {
        **job.spec,
        "weights": None if weights is None else weights["name"],
        "parameters": receipt["recipe"]["parameters"],
        "promote": False,
        "reproduce": {"job": job.id, "receipt": receipt},
    }


def compare_versions(connection: Connection, job: Job) -> dict[str, Any]:
    """Return the original job and, for each version, whether its weights are the same bytes.

    Args:
        connection: In the transaction that ends the job, behind its publications.
        job: A reproduction.
    """
    original = job.spec["reproduce"]["job"]
    before = models.of_job(connection, original, job.project)
    rows = []
    for number, version in enumerate(models.of_job(connection, job.id, job.project)):
        twin = before[number] if number < len(before) else None  # it may have been deleted
        same = twin and twin.files[MODEL_FILE] == version.files[MODEL_FILE]
        rows.append(
            {
                "version": version.version,
                "of_version": twin and twin.version,
                "same_weights": same,
            }
        )
    return {"job": original, "versions": rows}
