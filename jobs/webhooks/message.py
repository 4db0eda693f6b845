"""What a receiver is told about the end of a job."""

from __future__ import annotations

from typing import Any

from jobs.store.jobs import Job
from models_cache import durable


def event_of(job: Job) -> str:
    """Return the type of the message about a job that has ended: `job.succeeded`, ..."""
    return f"job.{job.status.value}"


def body_of(job: Job) -> str:
    """Return the message as it is signed and sent: one JSON object.

    Thin on purpose: what is large (a race's standings, evaluations) is fetched with the id.
    """
    result = job.result or {}
    data: dict[str, Any] = {
        "id": job.id,
        "type": job.type,
        "status": job.status.value,
        "dataset": job.dataset_id,
        "model": result.get("model", job.model),
        "version": result.get("version"),
        "metrics": job.metrics,
        "error": _error(job),
        "metadata": job.spec.get("metadata", {}),
    }
    assert job.finished_at is not None, "it has ended"
    message = {"type": event_of(job), "timestamp": job.finished_at.isoformat(), "data": data}
    return durable.canonical_json(message).decode()


def _error(job: Job) -> dict[str, str] | None:
    if job.error is None:
        return None
    return {"code": job.error["code"], "detail": job.error["message"]}
