"""Calls about data sets: upload, look, delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from jobs import lifecycle
from jobs.datasets.archive import quick_check
from jobs.datasets.manifest import ImageEntry, Manifest
from jobs.errors import (
    DatasetImageNotFound,
    DatasetInUse,
    DatasetNotReady,
    DatasetRejected,
)
from jobs.states import TRANSITIONS, JobEvent
from jobs.store import datasets, idempotency, jobs
from jobs.store.datasets import Dataset
from models_cache import durable
from models_cache.blobs import Blob
from service import quotas
from service.body_length import declared_bytes
from service.callers import Caller, CallerDep
from service.errors import NothingHere
from service.pictures import as_png
from service.schemas import DatasetBody, Page
from service.services import (
    NEEDS_SPACE,
    After,
    IdempotencyKey,
    IdPath,
    Limit,
    Services,
    ServicesDep,
    checked_name,
    new_id,
)
from service.uploads import Upload, receive

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_THUMBNAIL_PX = 128
_CAN_BE_CANCELLED = frozenset(state for state, event in TRANSITIONS if event is JobEvent.CANCEL)
_ARCHIVE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
            "application/x-hdf5": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}
_PICTURE_HEADERS = {"Cache-Control": "private, max-age=86400, immutable"}


def dataset_of(services: ServicesDep, caller: CallerDep, dataset_id: IdPath) -> Dataset:
    """Return the data set of the path, or raise `DatasetNotFound`."""
    with services.database.read() as connection:
        return datasets.get(connection, dataset_id, caller.project)


DatasetDep = Annotated[Dataset, Depends(dataset_of)]


@router.post("", status_code=202, openapi_extra=_ARCHIVE_BODY, dependencies=[NEEDS_SPACE])
async def create_dataset(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    name: Annotated[str, Query(max_length=255)] = "dataset",
    labels: Annotated[
        Literal["required", "none"],
        Query(description="`none`: images to be predicted, wherever they lie in the archive."),
    ] = "required",
    idempotency_key: IdempotencyKey = None,
) -> DatasetBody:
    """Upload labelled images (zip, tar, npz, HDF5): the raw bytes, or multipart field `file`."""
    name = checked_name(name, "/name")
    target = Target(caller, name, unlabelled=labels == "none")
    return await _accept(request, response, services, target, idempotency_key)


@router.post(
    "/{dataset_id}/versions",
    status_code=202,
    openapi_extra=_ARCHIVE_BODY,
    dependencies=[NEEDS_SPACE],
)
async def create_version(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    dataset: DatasetDep,
    idempotency_key: IdempotencyKey = None,
) -> DatasetBody:
    """Upload further images: a new immutable version holds the old and the new ones."""
    _require_ready(dataset)
    target = Target(caller, dataset.name, dataset.id)
    return await _accept(request, response, services, target, idempotency_key)


@router.get("")
def list_datasets(
    services: ServicesDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[DatasetBody]:
    """List data sets, newest first."""
    with services.database.read() as connection:
        found = datasets.page(connection, limit + 1, after, caller.project)
    return Page.of([_body(dataset) for dataset in found], limit)


@router.get("/{dataset_id}")
def get_dataset(dataset: DatasetDep) -> DatasetBody:
    """Return one data set."""
    return _body(dataset)


@router.get("/{dataset_id}/report")
def get_report(services: ServicesDep, dataset: DatasetDep) -> dict[str, Any]:
    """Return what was found in the upload, and by the newest job; docs/data_report.md has all."""
    if dataset.report_sha256 is None:
        if dataset.status == "processing":
            raise DatasetNotReady(dataset.id, dataset.status)
        raise NothingHere
    report: dict[str, Any] = json.loads(services.blobs.read(dataset.report_sha256))
    report = {"findings": [], "examined": None, **report}
    if dataset.examined_sha256 is not None:
        by_job = json.loads(services.blobs.read(dataset.examined_sha256))
        report["findings"] += by_job["findings"]
        report["examined"] = by_job["examined"]
    return report


@router.get("/{dataset_id}/images")
def list_images(
    services: ServicesDep,
    dataset: DatasetDep,
    split: Annotated[Literal["train", "val", "test"] | None, Query()] = None,
    label: Annotated[str | None, Query(max_length=255)] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[Any]:
    """List the images of a data set, of one split or label."""
    manifest = _manifest(services, dataset)
    names = manifest.classes
    items = [
        {
            "id": image.id,
            "path": image.path,
            "split": image.split,
            **labels_body(image, names),
            "width": image.width,
            "height": image.height,
            "size": image.size,
            "sha256": image.sha256,
        }
        for image in manifest.images
        if split in (None, image.split)
        and (label is None or label in (names[index] for index in image.labels))
    ]
    start = 0
    if after is not None:
        places = [index for index, item in enumerate(items) if item["id"] == after]
        if not places:
            raise DatasetImageNotFound(dataset.id, after)
        start = places[0] + 1
    shown = items[start : start + limit]
    more = len(items) > start + limit
    return Page(data=shown, has_more=more, next=str(shown[-1]["id"]) if more else None)


@router.get("/{dataset_id}/images/{image_id}", response_class=Response)
def get_image(services: ServicesDep, dataset: DatasetDep, image_id: IdPath) -> Response:
    """Return a picture, upright, as PNG without metadata."""
    return _picture(services, dataset, image_id, None)


@router.get("/{dataset_id}/images/{image_id}/thumbnail", response_class=Response)
def get_thumbnail(services: ServicesDep, dataset: DatasetDep, image_id: IdPath) -> Response:
    """Return a picture with a shorter side of 128 pixels, as PNG."""
    return _picture(services, dataset, image_id, _THUMBNAIL_PX)


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(services: ServicesDep, dataset: DatasetDep) -> Response:
    """Delete a data set that no job works on; published models stay."""
    with services.database.write("dataset_delete") as connection:
        using = jobs.unfinished_using(connection, dataset.id)
        using += datasets.versions_in_the_making(connection, dataset.id)
        if using:
            raise DatasetInUse(dataset.id, len(using), ", ".join(using[:5]))
        ingest = jobs.of_dataset(connection, dataset.id, "ingest")
        if ingest is not None and ingest.status in _CAN_BE_CANCELLED:
            lifecycle.move(connection, ingest, JobEvent.CANCEL)
        datasets.remove(connection, dataset.id)
    return Response(status_code=204)


@dataclass(frozen=True)
class Target:
    """Whose data set, which name it gets, whose images it keeps, and whether there are labels."""

    caller: Caller
    name: str
    parent: str | None = None
    unlabelled: bool = False


async def _accept(
    request: Request,
    response: Response,
    services: Services,
    target: Target,
    idempotency_key: str | None,
) -> DatasetBody:
    """Receive an archive, check it quickly, and put its rows on disk in one transaction."""
    settings = services.settings
    folder = settings.data_dir / "uploads"
    await run_in_threadpool(require_room, services, target.caller, declared_bytes(request))
    async with receive(request, folder, settings.max_upload_bytes) as upload:
        dataset = await run_in_threadpool(store, services, upload, target, idempotency_key)
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return _body(dataset)


def store(
    services: Services, upload: Upload, target: Target, idempotency_key: str | None = None
) -> Dataset:
    """Put a received archive and its rows on disk, after a quick check.

    Raises:
        DatasetError: It is no archive that can be read.
        IdempotencyMismatch: The key was used for another request.
        InsufficientStorage: The disk is full.
    """
    project = target.caller.project
    asked = ["datasets", [target.name, target.parent, target.unlabelled], upload.sha256]
    fingerprint = durable.sha256_of_bytes(durable.canonical_json(asked))
    if idempotency_key is not None:
        with services.database.read() as connection:
            known = idempotency.find(connection, idempotency_key, fingerprint, project)
            if known is not None:
                return datasets.get(connection, known, project)
    quick_check(upload.path, services.settings.ingest_limits)
    archive = services.blobs.put_file(upload.path, upload.sha256)
    with services.database.write("upload") as connection:
        dataset_id = idempotency.once(
            connection,
            idempotency_key,
            fingerprint,
            lambda: _insert(connection, target, archive),
            project,
        )
        return datasets.get(connection, dataset_id, project)


def require_room(services: Services, caller: Caller, more_bytes: int) -> None:
    """Refuse an upload before it comes, if it is clear by then that it cannot be kept.

    Raises:
        QuotaExceeded: The project has as many data sets or bytes as it may.
    """
    with services.database.read() as connection:
        quotas.require_dataset(connection, caller, more_bytes)


def _insert(connection: Connection, target: Target, archive: Blob) -> str:
    """Insert a data set and the job that checks it, unless the newest version is the same."""
    project = target.caller.project
    if target.parent is not None:
        _require_ready(datasets.get(connection, target.parent, project))
    else:
        newest = datasets.newest_of_name(connection, target.name, project)
        if newest is not None and _is_same(newest, archive):
            earlier = jobs.of_dataset(connection, newest.id, "ingest")
            if earlier is None or earlier.spec.get("unlabelled", False) == target.unlabelled:
                return newest.id
    quotas.require_dataset(connection, target.caller, archive.size_bytes)
    dataset_id = new_id("ds")
    kept = (archive.sha256, archive.size_bytes)
    datasets.add(connection, dataset_id, target.name, kept, parent=target.parent, project=project)
    spec = {"unlabelled": True} if target.unlabelled else {}
    job = jobs.NewJob(
        id=new_id("job"), type="ingest", spec=spec, dataset_id=dataset_id, project=project
    )
    jobs.accept(connection, job)
    return dataset_id


def _is_same(newest: Dataset, archive: Blob) -> bool:
    """Tell whether an upload repeats the newest version: then there is nothing to make."""
    return (
        newest.archive_sha256 == archive.sha256
        and newest.parent is None
        and newest.status != "rejected"
    )


def _require_ready(dataset: Dataset) -> None:
    if dataset.status == "rejected":
        raise DatasetRejected(dataset.id)
    if dataset.status != "ready":
        raise DatasetNotReady(dataset.id, dataset.status)


def _manifest(services: Services, dataset: Dataset) -> Manifest:
    _require_ready(dataset)
    assert dataset.manifest_sha256 is not None, "a ready data set has a manifest"
    return services.manifests.get(dataset.manifest_sha256)


def labels_body(image: ImageEntry, names: Sequence[str]) -> dict[str, Any]:
    """Return `label`, or `labels` of a data set whose images have any number of them."""
    if isinstance(image.label, int):
        return {"label": names[image.label]}
    return {"labels": [names[index] for index in image.labels]}


def _picture(
    services: Services, dataset: Dataset, image_id: str, shorter_side_px: int | None
) -> Response:
    manifest = _manifest(services, dataset)
    found = [image for image in manifest.images if image.id == image_id]
    if not found:
        raise DatasetImageNotFound(dataset.id, image_id)
    png = as_png(services.blobs.read(found[0].sha256), shorter_side_px)
    return Response(png, media_type="image/png", headers=_PICTURE_HEADERS)


def _body(dataset: Dataset) -> DatasetBody:
    return DatasetBody(
        id=dataset.id,
        name=dataset.name,
        version=dataset.version,
        parent=dataset.parent,
        status=dataset.status,
        task=dataset.task,
        classes=dataset.classes or [],
        splits=dataset.splits or {},
        digest=dataset.digest,
        bytes=dataset.archive_bytes,
        problem=_problem(dataset),
        created_at=dataset.created_at,
    )


def _problem(dataset: Dataset) -> dict[str, Any] | None:
    if dataset.problem is None:
        return None
    code, facts = dataset.problem["code"], dataset.problem["facts"]
    return {
        "type": f"/problems/{code}",
        "code": code,
        "detail": dataset.problem["message"],
        "facts": facts,
    }
