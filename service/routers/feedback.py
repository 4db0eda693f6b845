"""Calls about feedback: what images really show, and a model that learns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs import feedback as applying
from jobs.feedback_errors import FeedbackMissing
from jobs.store import feedback, idempotency, models
from jobs.store.feedback import Feedback, NewFeedback
from jobs.store.models import Version
from models_cache import durable
from models_cache.artifacts import MULTILABEL
from models_cache.errors import from_wire
from service import quotas
from service.callers import Caller, CallerDep
from service.errors import MediaTypeUnsupported, ValidationFailed
from service.image_bodies import MAX_BODY_BYTES, decode_base64, read_images
from service.inference_client import Wanted
from service.json_body import json_body, json_request, parse_json, read_body, validate
from service.schemas import (
    ApplyFeedbackBody,
    ApplyFeedbackRequest,
    FeedbackBody,
    FeedbackRequest,
    Page,
)
from service.services import (
    NEEDS_SPACE,
    After,
    IdempotencyKey,
    IdPath,
    Limit,
    NamePath,
    Services,
    ServicesDep,
    new_id,
)
from service.serving import ReferencePath, forward

router = APIRouter(prefix="/v1/models", tags=["feedback"])

Labelled = tuple[bytes, list[str]]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": FeedbackRequest.model_json_schema()},
        },
    }
}


@router.post(
    "/{reference}/feedback", status_code=201, openapi_extra=_BODY, dependencies=[NEEDS_SPACE]
)
async def give_feedback(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
    label: Annotated[
        list[str] | None,
        Query(max_length=100, description="What one raw image shows; several for such models."),
    ] = None,
) -> Page[FeedbackBody]:
    """Keep images with their right labels: one raw image with `?label=`, or JSON `inputs`."""
    version = await services.versions.find(reference, caller.project)
    with services.predicting.reserve(1, version.owner):
        labelled = await _read(request, label)
        for index, (_, labels) in enumerate(labelled):
            pointer = "/label" if label is not None else f"/inputs/{index}/label"
            _check_labels(version, labels, pointer)
        # Looked at by the model: what it cannot decode is no feedback, and what it said is kept
        images = [image for image, _ in labelled]
        answer = await forward(request, services, version, images, Wanted(top_k=1))
    for index, item in enumerate(answer["predictions"]):
        if "error" in item:
            error = from_wire(item["error"])
            pointer = "" if label is not None else f"/inputs/{index}/b64"
            raise ValidationFailed.one(pointer, error.code, str(error))
    said = [_said(item) for item in answer["predictions"]]
    kept = await run_in_threadpool(_keep, services, caller, version, labelled, said)
    return Page(data=[_body(item) for item in kept], has_more=False, next=None)


@router.get("/{name}/feedback")
def list_feedback(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    pending: Annotated[
        bool, Query(description="Only what no version of a data set has yet.")
    ] = False,
    limit: Limit = 20,
    after: After = None,
) -> Page[FeedbackBody]:
    """List feedback about a model, oldest first."""
    with services.database.read() as connection:
        models.get(connection, name, caller.project)
        found = feedback.page(
            connection,
            name,
            limit + 1,
            after,
            pending_only=pending,
            project=caller.project,
        )
    return Page.of([_body(item) for item in found], limit)


@router.delete("/{name}/feedback/{feedback_id}", status_code=204)
def delete_feedback(
    services: ServicesDep, caller: CallerDep, name: NamePath, feedback_id: IdPath
) -> Response:
    """Delete feedback that no version of a data set has yet."""
    with services.database.write("feedback_delete") as connection:
        feedback.remove(connection, feedback_id, name, caller.project)
    return Response(status_code=204)


@router.post(
    "/{reference}/feedback/apply",
    status_code=202,
    openapi_extra=json_request(ApplyFeedbackRequest, required=False),
    dependencies=[NEEDS_SPACE],
)
def apply_feedback(
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
    body: Annotated[ApplyFeedbackRequest, json_body(ApplyFeedbackRequest, default=True)],
    idempotency_key: IdempotencyKey = None,
) -> ApplyFeedbackBody:
    """Make a version of the data set with all pending feedback; `retrain` learns from it."""
    fingerprint = durable.sha256_of_bytes(
        durable.canonical_json(["feedback", reference, body.model_dump(mode="json")])
    )
    with services.database.read() as connection:
        known = idempotency_key and idempotency.find(
            connection, idempotency_key, fingerprint, caller.project
        )
    made = known or _apply(
        services, caller, reference, body.retrain, (idempotency_key, fingerprint)
    )
    dataset, job, count = made.split(" ")
    response.headers["Location"] = f"/v1/datasets/{dataset}"
    return ApplyFeedbackBody(dataset=dataset, job=None if job == "-" else job, images=int(count))


async def _read(request: Request, label: list[str] | None) -> list[Labelled]:
    """Return images with labels: one raw body if a label stands in the query, else JSON."""
    if label is not None:
        images, alone = await read_images(request)
        if not alone:
            raise ValidationFailed.one("/label", "raw-image", "`label` goes with one raw image")
        return [(images[0], sorted(set(label)))]
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeUnsupported(kind, "image/* with `?label=`, or application/json")
    raw = await read_body(request, MAX_BODY_BYTES * 4 // 3 + (1 << 16))
    return await run_in_threadpool(_from_json, raw)


def _from_json(raw: bytes) -> list[Labelled]:
    asked = validate(FeedbackRequest, parse_json(raw))
    labelled = []
    for index, item in enumerate(asked.inputs):
        if (item.label is None) == (item.labels is None):
            pointer = f"/inputs/{index}"
            raise ValidationFailed.one(pointer, "one-of", "give either `label` or `labels`")
        labels = [item.label] if item.label is not None else sorted(set(item.labels or []))
        labelled.append((decode_base64(item.b64, f"/inputs/{index}/b64"), labels))
    return labelled


def _check_labels(version: Version, labels: Sequence[str], pointer: str) -> None:
    """Refuse labels that the model does not know, before anything is kept."""
    if version.task != MULTILABEL and len(labels) != 1:
        raise ValidationFailed.one(pointer, "one-label", "an image has exactly one label")
    unknown = sorted(set(labels) - set(version.classes))
    if unknown:
        shown = ascii(unknown[0][:80])
        message = f"{shown} is none of the model's classes; upload new ones as a data set"
        raise ValidationFailed.one(pointer, "unknown-label", message)


def _said(item: dict[str, Any]) -> dict[str, Any]:
    if "labels" in item:
        return {"labels": item["labels"]}
    return {"label": item["scores"][0]["label"], "score": item["scores"][0]["score"]}


def _keep(
    services: Services,
    caller: Caller,
    version: Version,
    labelled: list[Labelled],
    said: list[dict[str, Any]],
) -> list[Feedback]:
    new = []
    for (image, labels), predicted in zip(labelled, said, strict=True):
        blob = services.blobs.put_bytes(image)
        item = NewFeedback(
            id=new_id("fb"),
            project=version.project,
            model=version.name,
            version=version.version,
            image_sha256=blob.sha256,
            image_bytes=blob.size_bytes,
            labels=labels,
            predicted=predicted,
        )
        new.append(item)
    with services.database.write("feedback") as connection:
        models.get(connection, version.name, version.project)  # it may have been deleted meanwhile
        quotas.require_bytes(connection, caller, sum(item.image_bytes for item in new))
        feedback.add(connection, new)
        return [feedback.get(connection, item.id, item.project) for item in new]


def _apply(
    services: Services,
    caller: Caller,
    reference: str,
    retrain: bool,
    request: tuple[str | None, str],
) -> str:
    """Write the archive, then every row in one transaction; return what the answer says."""
    version = services.versions.read(reference, caller.project)
    with services.database.read() as connection:
        items = feedback.pending(connection, version.name, version.project)
        parent = applying.parent_of(connection, version)
    if not items:
        raise FeedbackMissing(version.name)
    folder = services.settings.data_dir / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{new_id('feedback')}.zip"
    try:
        applying.write_archive(services.blobs, items, parent.task == MULTILABEL, path)
        archive = services.blobs.put_file(path)
    finally:
        path.unlink(missing_ok=True)
    ids = (new_id("ds"), new_id("job"), new_id("job") if retrain else None)

    def insert() -> str:
        quotas.require_dataset(connection, caller, archive.size_bytes)
        if retrain:
            quotas.require_job(connection, caller)
        applying.accept(connection, version, items, archive, ids)
        return f"{ids[0]} {ids[2] or '-'} {len(items)}"

    with services.database.write("apply_feedback") as connection:
        return idempotency.once(connection, *request, insert, caller.project)


def _body(item: Feedback) -> FeedbackBody:
    # As sets: a class that a later version added stands behind the others, whatever its name
    agreed = set(item.predicted.get("labels", [item.predicted.get("label")])) == set(item.labels)
    return FeedbackBody(
        id=item.id,
        model=item.model,
        version=item.version,
        image_sha256=item.image_sha256,
        labels=item.labels,
        predicted=item.predicted,
        agreed=agreed,
        dataset=item.dataset_id,
        created_at=item.created_at,
    )
