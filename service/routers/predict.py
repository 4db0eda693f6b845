"""Predictions: raw image, multipart or JSON in, labels with scores out."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from jobs.store import models
from jobs.store.models import Version
from models_cache.errors import (
    ArtifactError,
    StorageError,
    from_wire,
)
from models_cache.weights_errors import WeightsError
from service.errors import (
    BodyTooLarge,
    MediaTypeUnsupported,
    ModelUnavailable,
    MultipartMalformed,
    ValidationFailed,
)
from service.json_body import parse_json, read_body, validate
from service.schemas import PredictRequest
from service.services import Services, ServicesDep, new_id

router = APIRouter(prefix="/v1/models", tags=["predict"])

MAX_IMAGES = 32
MAX_BODY_BYTES = 64 << 20
_REFERENCE = r"^[a-z0-9][a-z0-9._-]{0,62}(@([a-z][a-z0-9._-]{0,62}|[1-9]\d{0,8}))?$"
#: Besides `image/*`: none at all, and what curl and others say when nobody told them.
_RAW_KINDS = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
_PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "application/json": {"schema": PredictRequest.model_json_schema()},
        },
    }
}


@router.post("/{reference}/predict", openapi_extra=_PREDICT_BODY)
async def predict(
    request: Request,
    response: Response,
    services: ServicesDep,
    reference: Annotated[
        str, Path(pattern=_REFERENCE, description="`name`, `name@alias` or `name@version`.")
    ],
    top_k: Annotated[int | None, Query(ge=1, le=10_000, description="Default: all labels.")] = None,
    max_error: Annotated[
        float | None,
        Query(gt=0, lt=1, description="Abstain rather than be wrong more often than this."),
    ] = None,
) -> dict[str, Any]:
    """Predict one image (raw body) or up to 32 (multipart `files`, or JSON `inputs`)."""
    started = time.perf_counter()
    version = await run_in_threadpool(_resolve, services, reference)
    async with services.predicting:
        images, alone = await _read_images(request)
        answer = await _forward(services, version, images, (top_k, max_error))
    predictions = [_prediction(item) for item in answer["predictions"]]
    if alone and "error" in predictions[0]:
        raise from_wire(answer["predictions"][0]["error"])
    timing = {**answer["timing"], "total_ms": round((time.perf_counter() - started) * 1e3, 3)}
    response.headers["Server-Timing"] = ", ".join(
        f"{name.removesuffix('_ms')};dur={value}"
        for name, value in timing.items()
        if name.endswith("_ms")
    )
    return {
        "id": new_id("pred"),
        "task": version.task,
        "model": {
            "name": version.name,
            "version": version.version,
            "digest": version.artifact_digest,
        },
        "predictions": predictions,
        "abstention": answer["abstention"],
        "timing": timing,
    }


async def _forward(
    services: Services,
    version: Version,
    images: list[bytes],
    wanted: tuple[int | None, float | None],
) -> dict[str, Any]:
    try:
        answer = await services.inference.predict(version.artifact_digest, images, *wanted)
    except (ArtifactError, StorageError, WeightsError) as error:
        # Broken on disk: nothing the caller can mend by asking differently.
        raise ModelUnavailable(version.name, version.version, str(error)) from error
    services.metrics.saw_images(version.name, len(images))
    return answer


def _resolve(services: Services, reference: str) -> Version:
    name, _, alias = reference.partition("@")
    with services.database.read() as connection:
        return models.resolve(connection, name, alias or None)


async def _read_images(request: Request) -> tuple[list[bytes], bool]:
    """Return the encoded images of a request, and whether it was one raw image."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        body = await read_body(request, MAX_BODY_BYTES * 4 // 3 + (1 << 16))
        return await run_in_threadpool(_from_json, body), False
    if kind == "multipart/form-data":
        return await _from_multipart(request), False
    if kind.startswith("image/") or kind in _RAW_KINDS:
        image = await read_body(request, MAX_BODY_BYTES)
        if not image:
            raise ValidationFailed.one("", "empty-body", "send the bytes of an image")
        return [image], True
    raise MediaTypeUnsupported(kind, "image/*, multipart/form-data or application/json")


def _from_json(body: bytes) -> list[bytes]:
    request = validate(PredictRequest, parse_json(body))
    images = []
    for index, item in enumerate(request.inputs):
        try:
            images.append(base64.b64decode(item.b64, validate=True))
        except (binascii.Error, ValueError):
            pointer = f"/inputs/{index}/b64"
            raise ValidationFailed.one(pointer, "invalid-base64", "not base64") from None
    return images


async def _from_multipart(request: Request) -> list[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    parser = MultiPartParser(request.headers, _bounded(request), max_files=MAX_IMAGES, max_fields=0)
    # An image below this stays in memory instead of a temporary file.
    parser.spool_max_size = MAX_BODY_BYTES
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        message = getattr(error, "message", "the boundary is missing")
        raise MultipartMalformed(str(message)[:200]) from None
    files = [value for key, value in form.multi_items() if key == "files"]
    if not files or len(files) != len(form.multi_items()):
        raise MultipartMalformed("send images in fields named `files`, and nothing else")
    return [await file.read() for file in files if isinstance(file, UploadFile)]


async def _bounded(request: Request) -> Any:  # noqa: ANN401 - an async generator of bytes
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        yield chunk


def _prediction(item: dict[str, Any]) -> dict[str, Any]:
    """Return one image's answer in the contract's form."""
    if "error" in item:
        error = item["error"]
        told = {"code": error["code"], "detail": error["message"]}
        nothing: dict[str, Any] = {"label": None, "score": None, "scores": []}
        unknown = {"abstained": False, "ood_score": None, "out_of_distribution": False}
        return {**nothing, **unknown, "error": told}
    if "labels" in item:
        return item
    return {"label": item["scores"][0]["label"], "score": item["scores"][0]["score"], **item}
