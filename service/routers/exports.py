"""Calls about exports: a version as a zip that others run without Graft."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from sqlalchemy import Connection
from starlette.responses import FileResponse

from jobs.exports import rows as exports
from jobs.exports.errors import ExportNotReady
from jobs.states import TERMINAL, JobState
from jobs.store import idempotency, jobs, models
from jobs.store.jobs import Job
from jobs.store.models import Version
from models_cache.durable import canonical_json, sha256_of_bytes
from service import quotas
from service.callers import Caller, CallerDep
from service.json_body import json_body, json_request
from service.routers.jobs import error_of
from service.routers.models import VersionPath
from service.schemas import ExportBody, ExportRequest
from service.services import NEEDS_SPACE, IdempotencyKey, IdPath, NamePath, Services, ServicesDep

router = APIRouter(prefix="/v1/models/{name}/versions/{version}/exports", tags=["models"])


@router.post(
    "", status_code=202, openapi_extra=json_request(ExportRequest), dependencies=[NEEDS_SPACE]
)
def create_export(
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    version: VersionPath,
    body: Annotated[ExportRequest, json_body(ExportRequest)],
    idempotency_key: IdempotencyKey = None,
) -> ExportBody:
    """Export a version as ONNX or a `torch.export` archive; repeated, return what there is."""
    fingerprint = sha256_of_bytes(canonical_json(["exports", name, version, body.format]))
    with services.database.write("export") as connection:
        found = models.version(connection, name, version, caller.project)
        job_id = idempotency.once(
            connection,
            idempotency_key,
            fingerprint,
            lambda: _ask(services, connection, caller, found, body.format),
            caller.project,
        )
        job = jobs.get(connection, job_id, caller.project)
    response.status_code = 200 if job.status in TERMINAL else 202
    response.headers["Location"] = f"/v1/models/{name}/versions/{version}/exports/{job.id}"
    return _body(job)


@router.get("/{export_id}")
def get_export(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    version: VersionPath,
    export_id: IdPath,
) -> ExportBody:
    """Return an export; it is a job of the same id, whose events and files tell more."""
    return _body(_export(services, caller, name, version, export_id))


@router.get("/{export_id}/file", response_class=FileResponse)
def get_export_file(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    version: VersionPath,
    export_id: IdPath,
) -> FileResponse:
    """Download an export's zip: graph, labels, model card, preprocessing, licence, example."""
    job = _export(services, caller, name, version, export_id)
    if job.status is not JobState.SUCCEEDED or job.result is None:
        raise ExportNotReady(job.id, job.status.value)
    sha256 = job.result["file"]["sha256"]
    with services.blobs.open(sha256):  # a missing file is an answer, not a broken connection
        path = services.blobs.local_path(sha256)
    return FileResponse(
        path,
        media_type="application/zip",
        filename=f"{name}-{version}-{job.spec['format']}.zip",
        headers={"ETag": f'"{sha256}"'},
    )


def _ask(
    services: Services, connection: Connection, caller: Caller, version: Version, format_name: str
) -> str:
    known = exports.find(connection, version, format_name, services.blobs.exists)
    if known is None:
        quotas.require_job(connection, caller)
        known = exports.add(connection, version, format_name)
    return known.id


def _export(services: Services, caller: Caller, name: str, version: int, export_id: str) -> Job:
    with services.database.read() as connection:
        found = models.version(connection, name, version, caller.project)
        return exports.get(connection, found, export_id)


def _body(job: Job) -> ExportBody:
    result = job.result or {}
    return ExportBody(
        id=job.id,
        model=job.spec["model"],
        version=job.spec["version"],
        format=job.spec["format"],
        status=job.status.value,
        phase=job.phase,
        file=result.get("file"),
        checked=result.get("checked"),
        error=error_of(job),
        created_at=job.created_at,
        finished_at=job.finished_at,
    )
