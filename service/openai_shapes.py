"""Data sets, jobs, logs and versions in OpenAI's shapes: the same objects, told differently."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jobs.states import JobState
from jobs.store.datasets import Dataset
from jobs.store.events import Event
from jobs.store.jobs import Job
from jobs.store.models import Version
from service.openai_hyperparameters import echoed
from service.openai_schemas import (
    CheckpointObject,
    EventObject,
    FileObject,
    FineTuningJobObject,
    JobErrorObject,
    UploadObject,
)
from service.receivers import webhook_body
from service.upload_parts import PartialUpload, parts_of

_FILE_STATUS = {"processing": "uploaded", "ready": "processed", "rejected": "error"}
_JOB_STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSING: "running",
    JobState.PAUSED: "paused",
    JobState.CANCELLING: "running",  # it may still succeed
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
_OF_THE_FILE = frozenset({"dataset-rejected", "dataset-unlabelled", "data-blocked"})
_LEVELS = {"warning": "warn"}
_METRICS = {"val/loss": "valid_loss", "train/loss": "train_loss"}


def file_object(dataset: Dataset) -> FileObject:
    """Return a data set as a file; its name is the file's."""
    problem = dataset.problem
    return FileObject.model_validate(
        {
            "id": dataset.id,
            "bytes": dataset.archive_bytes,
            "created_at": _seconds(dataset.created_at),
            "filename": dataset.name,
            "status": _FILE_STATUS[dataset.status],
            "status_details": None if problem is None else problem["message"],
        }
    )


def upload_object(upload: PartialUpload, dataset: Dataset | None) -> UploadObject:
    """Return an upload in parts, with the file that it became."""
    return UploadObject(
        id=upload.id,
        bytes=upload.announced.size_bytes,
        created_at=upload.announced.created_at,
        expires_at=upload.expires_at,
        filename=upload.announced.file_name,
        status="pending" if upload.outcome is None else upload.outcome.status,
        file=None if dataset is None else file_object(dataset),
        parts=parts_of(upload),
    )


def job_object(job: Job, dataset_status: str | None, now: datetime) -> FineTuningJobObject:
    """Return a fine-tuning job.

    Args:
        job: The job.
        dataset_status: Of its data set; None if that was deleted.
        now: From which a running job's remaining time counts.
    """
    spec = job.spec
    hyperparameters = echoed(spec["recipe"], spec["parameters"])
    status = _JOB_STATUS[job.status]
    if job.status is JobState.QUEUED and dataset_status == "processing":
        status = "validating_files"
    return FineTuningJobObject(
        id=job.id,
        created_at=_seconds(job.created_at),
        finished_at=None if job.finished_at is None else _seconds(job.finished_at),
        estimated_finish=_estimated_finish(job, now),
        status=status,
        error=_error(job),
        model=spec["backbone"],
        fine_tuned_model=job.model if job.status is JobState.SUCCEEDED else None,
        training_file=job.dataset_id or "",
        seed=spec["seed"],
        hyperparameters=hyperparameters,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata=spec.get("metadata", {}),
        recipe=spec["recipe"],
        webhook=webhook_body(job, None),
    )


def event_object(event: Event) -> EventObject:
    """Return a row of a job's log as a sentence with its data."""
    failed = event.data.get("error") is not None
    return EventObject.model_validate(
        {
            "id": f"{event.job_id}.{event.seq}",
            "created_at": _seconds(event.at),
            "level": "error" if failed else _LEVELS.get(event.kind, "info"),
            "type": "metrics" if event.kind == "metrics" else "message",
            "message": _sentence(event.kind, event.data),
            "data": event.data,
        }
    )


def checkpoint_object(version: Version, step: int) -> CheckpointObject:
    """Return a version that a job published at an optimizer step."""
    reference = f"{version.name}@{version.version}"
    theirs = {_METRICS[name]: value for name, value in version.metrics.items() if name in _METRICS}
    return CheckpointObject(
        id=reference,
        created_at=_seconds(version.created_at),
        fine_tuned_model_checkpoint=reference,
        fine_tuning_job_id=version.job_id or "",
        step_number=step,
        metrics={"step": step, **theirs, **version.metrics},
    )


def _sentence(kind: str, data: dict[str, Any]) -> str:
    match kind:
        case "state" if data.get("error"):
            return f"The job is {data['status']}: {data['error']['message']}"
        case "state":
            return f"The job is {data['status']}"
        case "phase":
            return f"Phase {data['phase']}"
        case "metrics":
            figures = ", ".join(
                f"{name}={value:.4g}"
                for name, value in data.get("metrics", {}).items()
                if isinstance(value, int | float)
            )
            return f"Step {data['step']}: {figures}" if "step" in data else figures or "Figures"
        case "checkpoint":
            return f"A checkpoint of step {data['step']} is on disk"
        case "candidate":
            return "A first version is published"
        case "resolved":
            return "Every parameter has its value"
        case _:
            return str(data.get("message", kind))


def _error(job: Job) -> JobErrorObject | None:
    if job.error is None or job.status is not JobState.FAILED:
        return None
    code = job.error["code"]
    param = "training_file" if code in _OF_THE_FILE else None
    return JobErrorObject(code=code, message=job.error["message"], param=param)


def _estimated_finish(job: Job, now: datetime) -> int | None:
    left_seconds = (job.progress or {}).get("eta_seconds")
    if job.status is not JobState.RUNNING or left_seconds is None:
        return None
    return _seconds(now) + round(float(left_seconds))


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
