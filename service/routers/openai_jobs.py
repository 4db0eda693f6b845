"""Calls about fine-tuning jobs in OpenAI's shape: the same jobs, other words."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from jobs.errors import DatasetNotFound, JobNotFound
from jobs.states import JobEvent, JobState
from jobs.store import datasets, events, jobs, models
from jobs.store.database import utc_now
from jobs.store.jobs import Job
from jobs.store.models import Version
from service.callers import CallerDep
from service.errors import ValidationFailed
from service.json_body import json_body, json_request
from service.openai_hyperparameters import hyperparameters_of, parameters_of, recipe_for
from service.openai_schemas import (
    CheckpointObject,
    EventObject,
    FineTuningJobObject,
    FineTuningRequest,
)
from service.openai_shapes import checkpoint_object, event_object, job_object
from service.receivers import webhook_body
from service.routers.jobs import ask, wait_for_end
from service.routers.openai_files import MAX_PAGE, CursorLimit
from service.schemas import JobRequest, Page
from service.services import (
    NEEDS_SPACE,
    After,
    IdempotencyKey,
    IdPath,
    Services,
    ServicesDep,
    model_name_from,
)
from service.submission import accept

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai fine-tuning"])

_STOP_SECONDS = 5.0  # a running job is stopped within two
_ARCHIVE_ENDING = re.compile(r"\.(zip|tar|tar\.gz|tgz|npz|h5|hdf5)$", re.IGNORECASE)


def job_of(services: ServicesDep, caller: CallerDep, job_id: IdPath) -> Job:
    """Return the fine-tuning job of the path, or raise `JobNotFound`; others have no such shape."""
    with services.database.read() as connection:
        job = jobs.get(connection, job_id, caller.project)
    if job.type != "fine_tune":
        raise JobNotFound(job_id)
    return job


JobDep = Annotated[Job, Depends(job_of)]


@router.post("", openapi_extra=json_request(FineTuningRequest), dependencies=[NEEDS_SPACE])
def create_job(
    services: ServicesDep,
    caller: CallerDep,
    body: Annotated[FineTuningRequest, json_body(FineTuningRequest)],
    idempotency_key: IdempotencyKey = None,
) -> FineTuningJobObject:
    """Queue a fine-tuning; one whose file is still being checked waits for that."""
    if body.validation_file is not None:
        message = "not offered; put those images into the archive, as split `val`"
        raise ValidationFailed.one("/validation_file", "not-offered", message)
    hyperparameters = hyperparameters_of(body)
    recipe = body.recipe or recipe_for(hyperparameters)
    with services.database.read() as connection:
        name = datasets.get(connection, body.training_file, caller.project).name
    request = JobRequest(
        dataset=body.training_file,
        backbone=body.model,
        recipe=recipe,
        parameters=parameters_of(recipe, hyperparameters),
        model=body.suffix or model_name_from(_ARCHIVE_ENDING.sub("", name)),
        seed=body.seed or 0,
        metadata=body.metadata or {},
        webhook=body.webhook,
    )
    accepted = accept(services, caller, request, idempotency_key)
    shown = _object(services, accepted.job)
    return shown.model_copy(update={"webhook": webhook_body(accepted.job, accepted.secret)})


@router.get("")
def list_jobs(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    limit: CursorLimit = 20,
    after: After = None,
) -> Page[FineTuningJobObject]:
    """List fine-tuning jobs, newest first."""
    if any(name.startswith("metadata") for name in request.query_params):
        raise ValidationFailed.one("/metadata", "not-offered", "jobs are not searched by metadata")
    shown = min(limit, MAX_PAGE)
    with services.database.read() as connection:
        found = jobs.page(
            connection, shown + 1, after, job_type="fine_tune", project=caller.project
        )
    return Page.of([_object(services, job) for job in found], shown)


@router.get("/{job_id}")
def get_job(services: ServicesDep, job: JobDep) -> FineTuningJobObject:
    """Return a fine-tuning job."""
    return _object(services, job)


@router.post("/{job_id}/cancel")
async def cancel_job(services: ServicesDep, job: JobDep) -> FineTuningJobObject:
    """Stop a job; the answer comes when it has stopped, within seconds."""
    asked = await run_in_threadpool(ask, services, job, JobEvent.CANCEL)
    stopped = await wait_for_end(services, asked, _STOP_SECONDS)
    return await run_in_threadpool(_object, services, stopped)


@router.post("/{job_id}/pause")
def pause_job(services: ServicesDep, job: JobDep) -> FineTuningJobObject:
    """Write a checkpoint and free the slot until `resume`; `running` until that is done."""
    return _object(services, ask(services, job, JobEvent.PAUSE))


@router.post("/{job_id}/resume")
def resume_job(services: ServicesDep, job: JobDep) -> FineTuningJobObject:
    """Queue a paused job again; it goes on from its checkpoint."""
    return _object(services, ask(services, job, JobEvent.RESUME))


@router.get("/{job_id}/events")
def list_events(
    services: ServicesDep,
    job: JobDep,
    limit: CursorLimit = 20,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_]{1,48}\.\d{1,9}$")] = None,
) -> Page[EventObject]:
    """List a job's log, newest first; `after` an event come the older ones."""
    shown = min(limit, MAX_PAGE)
    before = None if after is None else int(after.rpartition(".")[2])
    with services.database.read() as connection:
        found = events.page_backwards(connection, job.id, before, shown + 1)
    return Page.of([event_object(event) for event in found], shown)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(services: ServicesDep, job: JobDep) -> Page[CheckpointObject]:
    """List the versions that a job published, newest first: each can be predicted with."""
    with services.database.read() as connection:
        found = models.of_job(connection, job.id, job.project)
        steps = [_step_of(connection, job, version) for version in found]
    objects = [checkpoint_object(*pair) for pair in zip(found, steps, strict=True)]
    return Page.of(objects[::-1], len(objects))


def _object(services: Services, job: Job) -> FineTuningJobObject:
    return job_object(job, _dataset_status(services, job), utc_now())


def _step_of(connection: Connection, job: Job, version: Version) -> int:
    """Return the optimizer step that a job had reached when it published a version."""
    checkpoint = events.newest_of_kind(connection, job.id, "checkpoint", version.created_at)
    return 0 if checkpoint is None else int(checkpoint.data["step"])


def _dataset_status(services: Services, job: Job) -> str | None:
    """Return how far the check of a queued job's file is; of other jobs it says nothing."""
    if job.status is not JobState.QUEUED or job.dataset_id is None:
        return None
    with services.database.read() as connection:
        try:
            return datasets.get(connection, job.dataset_id, job.project).status
        except DatasetNotFound:
            return None
