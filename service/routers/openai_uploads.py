"""Calls about uploads in parts in OpenAI's shape: a large archive, resumable."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from jobs.store import datasets
from jobs.store.datasets import Dataset
from models_cache import durable
from service import upload_parts
from service.callers import CallerDep
from service.errors import BodyTooLarge
from service.json_body import json_body, json_request
from service.openai_schemas import CompleteRequest, PartObject, UploadObject, UploadRequest
from service.openai_shapes import upload_object
from service.routers.datasets import require_room, store
from service.routers.openai_files import target_of
from service.services import NEEDS_SPACE, IdPath, Services, ServicesDep, new_id
from service.upload_parts import Announced, Outcome, PartialUpload
from service.uploads import Form, receive

router = APIRouter(prefix="/v1/uploads", tags=["openai uploads"])

_PART_FORM = Form(file="data")


def upload_of(services: ServicesDep, caller: CallerDep, upload_id: IdPath) -> PartialUpload:
    """Return the upload of the path, or raise `UploadNotFound`."""
    return upload_parts.find(_root(services), upload_id, caller.project)


UploadDep = Annotated[PartialUpload, Depends(upload_of)]


@router.post("", openapi_extra=json_request(UploadRequest), dependencies=[NEEDS_SPACE])
def create_upload(
    services: ServicesDep,
    caller: CallerDep,
    body: Annotated[UploadRequest, json_body(UploadRequest)],
) -> UploadObject:
    """Announce a file that will come in parts; it expires an hour after the last one."""
    target_of(caller, body.filename)  # refused now rather than after the last part
    if body.bytes > services.settings.max_upload_bytes:
        raise BodyTooLarge(services.settings.max_upload_bytes)
    begun_bytes = upload_parts.announced_bytes(_root(services), caller.project)
    require_room(services, caller, begun_bytes + body.bytes)
    announced = Announced(caller.project, body.filename, body.bytes, int(time.time()))
    upload = upload_parts.begin(_root(services), new_id("upload"), announced)
    return upload_object(upload, None)


@router.get("/{upload_id}")
def get_upload(services: ServicesDep, upload: UploadDep) -> UploadObject:
    """Return an upload with the parts that have arrived; not in OpenAI's API."""
    return upload_object(upload, _dataset_of(services, upload))


@router.post("/{upload_id}/parts", dependencies=[NEEDS_SPACE])
async def add_part(request: Request, services: ServicesDep, upload: UploadDep) -> PartObject:
    """Send a part: raw bytes, or multipart field `data`; repeating it changes nothing."""
    upload_parts.require_pending(upload)
    limit_bytes = upload.announced.size_bytes
    async with receive(request, _root(services), limit_bytes, _PART_FORM) as received:
        part_id = await run_in_threadpool(upload_parts.add_part, upload, received)
    return PartObject(id=part_id, created_at=int(time.time()), upload_id=upload.id)


@router.post(
    "/{upload_id}/complete", openapi_extra=json_request(CompleteRequest), dependencies=[NEEDS_SPACE]
)
def complete_upload(
    services: ServicesDep,
    caller: CallerDep,
    upload: UploadDep,
    body: Annotated[CompleteRequest, json_body(CompleteRequest)],
) -> UploadObject:
    """Put the parts together in the order given: a data set; repeating it changes nothing."""
    if upload.outcome is not None and upload.outcome.status == "completed":
        return upload_object(upload, _dataset_of(services, upload))
    path = _root(services) / f"{uuid.uuid4().hex}{durable.TEMPORARY_SUFFIX}"
    try:
        whole = upload_parts.assemble(upload, body.part_ids, path, body.md5)
        dataset = store(services, whole, target_of(caller, upload.announced.file_name))
    finally:
        path.unlink(missing_ok=True)
    ended = upload_parts.end(upload, Outcome("completed", dataset.id))
    return upload_object(ended, dataset)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload: UploadDep) -> UploadObject:
    """Give an upload up and remove its parts; repeating it changes nothing."""
    if upload.outcome is None or upload.outcome.status != "cancelled":
        upload_parts.require_pending(upload)
        upload = upload_parts.end(upload, Outcome("cancelled"))
    return upload_object(upload, None)


def _root(services: Services) -> Path:
    return services.settings.data_dir / "uploads"


def _dataset_of(services: Services, upload: PartialUpload) -> Dataset | None:
    if upload.outcome is None or upload.outcome.dataset_id is None:
        return None
    with services.database.read() as connection:
        return datasets.get(connection, upload.outcome.dataset_id, upload.announced.project)
