"""Calls about files in OpenAI's shape: a file is a data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from jobs.store import datasets
from jobs.store.datasets import Dataset
from service.callers import Caller, CallerDep
from service.errors import ValidationFailed
from service.openai_schemas import FINE_TUNE, FileObject
from service.openai_shapes import file_object
from service.routers.datasets import DatasetDep, Target, delete_dataset, require_room, store
from service.schemas import Deleted, Page
from service.services import NEEDS_SPACE, After, IdempotencyKey, ServicesDep, checked_name
from service.uploads import Form, receive

router = APIRouter(prefix="/v1/files", tags=["openai files"])

MAX_PAGE = 200  # items that come at once, whatever is asked for
CursorLimit = Annotated[int, Query(ge=1, le=10_000, description="At most 200 come at once.")]
_FORM = Form(texts=frozenset({"purpose"}))
_FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [FINE_TUNE]},
                    },
                    "required": ["file", "purpose"],
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FILE_BODY, dependencies=[NEEDS_SPACE])
async def create_file(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> FileObject:
    """Upload an archive of labelled images: multipart `file` and `purpose` (`fine-tune`)."""
    settings = services.settings
    await run_in_threadpool(require_room, services, caller, 0)
    async with receive(
        request, settings.data_dir / "uploads", settings.max_upload_bytes, _FORM
    ) as upload:
        if upload.texts.get("purpose") != FINE_TUNE:
            raise ValidationFailed.one("/purpose", "not-offered", f"must be {FINE_TUNE}")
        target = target_of(caller, upload.file_name or "dataset")
        dataset = await run_in_threadpool(store, services, upload, target, idempotency_key)
    return file_object(dataset)


@router.get("")
def list_files(
    services: ServicesDep,
    caller: CallerDep,
    limit: CursorLimit = 100,
    after: After = None,
    purpose: Annotated[str, Query(max_length=64)] = FINE_TUNE,
    order: Annotated[Literal["desc"], Query(description="Newest first.")] = "desc",  # noqa: ARG001
) -> Page[FileObject]:
    """List data sets as files, newest first."""
    shown = min(limit, MAX_PAGE)
    found: list[Dataset] = []
    if purpose == FINE_TUNE:
        with services.database.read() as connection:
            found = datasets.page(connection, shown + 1, after, caller.project)
    return Page.of([file_object(dataset) for dataset in found], shown)


@router.get("/{dataset_id}")
def get_file(dataset: DatasetDep) -> FileObject:
    """Return a data set as a file."""
    return file_object(dataset)


@router.delete("/{dataset_id}")
def delete_file(services: ServicesDep, dataset: DatasetDep) -> Deleted:
    """Delete a data set that no job works on; published models stay."""
    delete_dataset(services, dataset)
    return Deleted(id=dataset.id, object="file")


@router.get("/{dataset_id}/content", response_class=FileResponse)
def get_content(services: ServicesDep, dataset: DatasetDep) -> FileResponse:
    """Return the archive that was uploaded."""
    with services.blobs.open(dataset.archive_sha256):  # a missing file is an answer
        path = services.blobs.local_path(dataset.archive_sha256)
    headers = {"ETag": f'"{dataset.archive_sha256}"'}
    return FileResponse(
        path, media_type="application/octet-stream", headers=headers, filename=dataset.name
    )


def target_of(caller: Caller, file_name: str) -> Target:
    """Return the data set that a file of that name becomes: it has the same name."""
    return Target(caller, checked_name(file_name.replace("\\", "/").rpartition("/")[2], "/file"))
