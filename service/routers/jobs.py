"""Calls about jobs: ask for one, follow it, stop it."""

from __future__ import annotations

import asyncio
import pathlib
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, StreamingResponse

from jobs import lifecycle
from jobs.errors import (
    IllegalTransition,
    JobNotEnded,
    RetryExists,
)
from jobs.run_files import list_run_files, open_run_file
from jobs.states import TERMINAL, JobEvent, JobState
from jobs.store import events, jobs
from jobs.store.jobs import Job
from service import quotas
from service.callers import CallerDep
from service.errors import NothingHere
from service.event_stream import stream_events
from service.json_body import json_body, json_request
from service.receivers import webhook_body
from service.schemas import EventBody, FileBody, JobBody, JobRequest, Page, RetryRequest
from service.services import (
    NEEDS_SPACE,
    After,
    IdempotencyKey,
    IdPath,
    Limit,
    Services,
    ServicesDep,
    remove_run_folders,
)
from service.submission import accept, accept_retry

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_LONGEST_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.05
_BESIDE_SPEC = ("metadata", "webhook")  # told as fields of their own
#: Where what was asked for is already done, or under way.
_DONE = {
    JobEvent.CANCEL: (JobState.CANCELLING, JobState.CANCELLED),
    JobEvent.PAUSE: (JobState.PAUSING, JobState.PAUSED),
    JobEvent.RESUME: (JobState.QUEUED, JobState.RUNNING),
}
_WAIT_PREFERENCE = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})")


def job_of(services: ServicesDep, caller: CallerDep, job_id: IdPath) -> Job:
    """Return the job of the path, or raise `JobNotFound`."""
    with services.database.read() as connection:
        return jobs.get(connection, job_id, caller.project)


JobDep = Annotated[Job, Depends(job_of)]


@router.post(
    "", status_code=202, openapi_extra=json_request(JobRequest), dependencies=[NEEDS_SPACE]
)
async def create_job(
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    body: Annotated[JobRequest, json_body(JobRequest)],
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[str | None, Header(description="`wait=N`: wait up to N seconds.")] = None,
) -> JobBody:
    """Queue a job; with `Prefer: wait=N` the answer comes at its end or after N seconds."""
    accepted = await run_in_threadpool(accept, services, caller, body, idempotency_key)
    job = accepted.job
    wait_seconds = _preferred_wait(prefer)
    if wait_seconds:
        response.headers["Preference-Applied"] = f"wait={wait_seconds:.0f}"
        job = await wait_for_end(services, job, wait_seconds)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return await run_in_threadpool(_placed, services, job, accepted.secret)


@router.get("")
def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    status: Annotated[JobState | None, Query()] = None,
    job_type: Annotated[str | None, Query(alias="type", pattern=r"^[a-z_]{1,32}$")] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[JobBody]:
    """List jobs, newest first."""
    with services.database.read() as connection:
        found = jobs.page(
            connection,
            limit + 1,
            after,
            status=status,
            job_type=job_type,
            project=caller.project,
        )
        bodies = [_body(job, jobs.queue_position(connection, job)) for job in found]
    return Page.of(bodies, limit)


@router.get("/{job_id}")
def get_job(services: ServicesDep, job: JobDep) -> JobBody:
    """Return one job."""
    return _placed(services, job)


@router.post("/{job_id}/cancel")
def cancel_job(services: ServicesDep, job: JobDep) -> JobBody:
    """Stop a job; a running one is stopped within two seconds. Repeating it changes nothing."""
    return _placed(services, ask(services, job, JobEvent.CANCEL))


@router.post("/{job_id}/pause")
def pause_job(services: ServicesDep, job: JobDep) -> JobBody:
    """Write a checkpoint and free the slot until `resume`."""
    return _placed(services, ask(services, job, JobEvent.PAUSE))


@router.post("/{job_id}/resume")
def resume_job(services: ServicesDep, job: JobDep) -> JobBody:
    """Queue a paused job again; it goes on from its checkpoint."""
    return _placed(services, ask(services, job, JobEvent.RESUME))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    openapi_extra=json_request(RetryRequest, required=False),
    dependencies=[NEEDS_SPACE],
)
def retry_job(
    services: ServicesDep,
    caller: CallerDep,
    response: Response,
    job: JobDep,
    body: Annotated[RetryRequest, json_body(RetryRequest, default=True)],
) -> JobBody:
    """Make a new job with the same specification, or (`reproduce`) with the same bits."""
    if job.type not in jobs.PUBLIC_TYPES:
        raise IllegalTransition(job.id, f"an internal {job.type}", "retry")
    if job.status not in TERMINAL:
        raise JobNotEnded(job.id, job.status.value)
    with services.database.write("retry") as connection:
        again = jobs.find_retry(connection, job.id)
        if again is None:
            quotas.require_job(connection, caller)
            again = accept_retry(connection, job, body.reproduce)
        elif ("reproduce" in again.spec) != body.reproduce:
            raise RetryExists(job.id, again.id, "on" if "reproduce" in again.spec else "off")
    response.headers["Location"] = f"/v1/jobs/{again.id}"
    return _placed(services, again)


@router.delete("/{job_id}", status_code=204)
def delete_job(services: ServicesDep, caller: CallerDep, job_id: IdPath) -> Response:
    """Delete an ended job and its log; a model it published stays, an export goes."""
    with services.database.write("job_delete") as connection:
        jobs.remove(connection, job_id, caller.project)
    remove_run_folders(services, [job_id])
    return Response(status_code=204)


@router.get("/{job_id}/events", response_model=None)
async def get_events(
    request: Request,
    services: ServicesDep,
    job: JobDep,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="`seq` of the last event seen.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,9}$")] = None,
) -> Response:
    """Return a page of the job's log; with `Accept: text/event-stream`, the log as it grows."""
    if "text/event-stream" in request.headers.get("accept", ""):
        start = int(last_event_id) if last_event_id is not None else after
        stream = stream_events(services.database, job, start, request.is_disconnected)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    page = await run_in_threadpool(_event_page, services, job.id, after, limit)
    return JSONResponse(page.model_dump(mode="json"))


@router.get("/{job_id}/files")
def list_files(services: ServicesDep, job: JobDep) -> Page[FileBody]:
    """List what can be downloaded of the job: log, progress, figures, reports."""
    sizes = list_run_files(_run_folder(services, job), job.attempt)
    bodies = [FileBody(name=name, size=size) for name, size in sorted(sizes.items())]
    return Page(data=bodies, has_more=False, next=None)


@router.get("/{job_id}/files/{name}", response_class=StreamingResponse)
def get_file(
    services: ServicesDep,
    job: JobDep,
    name: Annotated[str, Path(pattern=r"^[a-z0-9_.-]{1,64}$")],
) -> StreamingResponse:
    """Return a file of the job; of a log, which has no bound, the last mebibyte."""
    opened = open_run_file(_run_folder(services, job), job.attempt, name)
    if opened is None:
        raise NothingHere
    headers = {"Content-Length": str(opened.size_bytes)}
    return StreamingResponse(opened.chunks, media_type=opened.media_type, headers=headers)


def _run_folder(services: Services, job: Job) -> pathlib.Path:
    return services.settings.data_dir / "runs" / job.id


def ask(services: Services, job: Job, event: JobEvent) -> Job:
    """Move a job if its state allows; a repeated request finds it done and changes nothing.

    Raises:
        JobNotFound: It was deleted meanwhile.
        IllegalTransition: It cannot do that in its state.
    """
    with services.database.write(event.value) as connection:
        current = jobs.get(connection, job.id, job.project)
        if current.status in _DONE[event]:
            return current
        return lifecycle.move(connection, current, event)


def _preferred_wait(prefer: str | None) -> float:
    match = _WAIT_PREFERENCE.search(prefer or "")
    return min(float(match.group(1)), _LONGEST_WAIT_SECONDS) if match else 0.0


async def wait_for_end(services: Services, job: Job, wait_seconds: float) -> Job:
    """Return the job at its end, or as it is after `wait_seconds`."""

    def look() -> Job:
        with services.database.read() as connection:
            return jobs.get(connection, job.id, job.project)

    deadline = time.monotonic() + wait_seconds
    while job.status not in TERMINAL and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        job = await run_in_threadpool(look)
    return job


def _event_page(services: Services, job_id: str, after: int, limit: int) -> Page[EventBody]:
    with services.database.read() as connection:
        found = events.page(connection, job_id, after, limit + 1)
    bodies = [EventBody(seq=e.seq, kind=e.kind, data=e.data, at=e.at) for e in found]
    more = len(bodies) > limit
    shown = bodies[:limit]
    return Page(data=shown, has_more=more, next=str(shown[-1].seq) if more else None)


def _placed(services: Services, job: Job, secret: str | None = None) -> JobBody:
    """Return a job's body with its place in the queue."""
    if job.status is not JobState.QUEUED:
        return _body(job, None, secret)
    with services.database.read() as connection:
        return _body(job, jobs.queue_position(connection, job), secret)


def _body(job: Job, position: int | None, secret: str | None = None) -> JobBody:
    return JobBody(
        id=job.id,
        type=job.type,
        status=job.status.value,
        phase=job.phase,
        queue_position=position,
        progress=job.progress,
        spec={key: value for key, value in job.spec.items() if key not in _BESIDE_SPEC},
        resolved=job.resolved,
        metrics=job.metrics,
        resources=job.resources,
        attempt=job.attempt,
        retry_of=job.retry_of,
        result=job.result,
        error=error_of(job),
        metadata=job.spec.get("metadata", {}),
        webhook=webhook_body(job, secret),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def error_of(job: Job) -> dict[str, Any] | None:
    """Return why a job failed, as clients see it; None if it did not."""
    if job.error is None:
        return None
    code = job.error["code"]
    return {
        "type": f"/problems/{code}",
        "code": code,
        "detail": job.error["message"],
        "facts": job.error["facts"],
    }
