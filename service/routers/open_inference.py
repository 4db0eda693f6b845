"""Calls of the Open Inference Protocol, version 2: what Triton's and KServe's clients speak."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs.store import models
from jobs.store.models import Version
from models_cache.artifacts import parse_artifact
from models_cache.errors import InferenceUnavailable
from service.callers import CallerDep
from service.errors import MediaTypeUnsupported, NotReady, ValidationFailed
from service.image_bodies import MAX_BODY_BYTES
from service.inference_client import Wanted
from service.json_body import read_body
from service.open_inference_bodies import (
    IMAGE,
    INPUTS,
    LOGITS,
    OUTPUTS,
    PIXELS,
    PROBABILITIES,
    InferBody,
    InferRequest,
    parse_infer,
    write_answer,
)
from service.services import NamePath, Services, ServicesDep
from service.serving import ReferencePath, forward, server_timing, timing_of
from service.version import VERSION

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_JSON_LENGTH = "Inference-Header-Content-Length"
_MAX_INFER_BYTES = MAX_BODY_BYTES * 4 // 3 + (1 << 16)  # base64 of as much as other calls take
_INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": InferBody.model_json_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def version_of(services: ServicesDep, caller: CallerDep, reference: ReferencePath) -> Version:
    """Return the version that a path without a number means now."""
    return await services.versions.find(reference, caller.project)


def numbered_version_of(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    number: Annotated[int, Path(ge=1, le=2**31 - 1)],
) -> Version:
    """Return the version of a path with a number."""
    with services.database.read() as connection:
        return models.version(connection, name, number, caller.project)


VersionDep = Annotated[Version, Depends(version_of)]
NumberedVersionDep = Annotated[Version, Depends(numbered_version_of)]
JsonLength = Annotated[int | None, Header(alias=_JSON_LENGTH, ge=0)]


@router.get("")
def get_server() -> dict[str, Any]:
    """Say what this server is."""
    extensions = ["binary_tensor_data", "classification"]
    return {"name": "graft", "version": VERSION, "extensions": extensions}


@router.get("/health/live")
def get_live() -> dict[str, bool]:
    """Say that the api process answers."""
    return {"live": True}


@router.get("/health/ready")
async def get_ready(services: ServicesDep) -> dict[str, bool]:
    """Say that predictions are answered; no worker is needed for that."""
    if await services.inference.health() is None:
        raise NotReady("inference")
    return {"ready": True}


@router.get("/models/{reference}")
def get_model(services: ServicesDep, version: VersionDep) -> dict[str, Any]:
    """Return a model's inputs and outputs."""
    return _metadata(services, version)


@router.get("/models/{name}/versions/{number}")
def get_model_version(services: ServicesDep, version: NumberedVersionDep) -> dict[str, Any]:
    """Return a version's inputs and outputs."""
    return _metadata(services, version)


@router.get("/models/{reference}/ready")
async def get_model_ready(services: ServicesDep, version: VersionDep) -> dict[str, Any]:
    """Say that a model can be asked; it is loaded when it is."""
    return await _readiness(services, version)


@router.get("/models/{name}/versions/{number}/ready")
async def get_model_version_ready(
    services: ServicesDep, version: NumberedVersionDep
) -> dict[str, Any]:
    """Say that a version can be asked; it is loaded when it is."""
    return await _readiness(services, version)


@router.post("/models/{reference}/infer", openapi_extra=_INFER_BODY)
async def infer(
    request: Request, services: ServicesDep, version: VersionDep, json_bytes: JsonLength = None
) -> Response:
    """Predict `image` (encoded) or `pixels` (preprocessed), as JSON or with binary tensors."""
    return await _answer(request, services, version, json_bytes)


@router.post("/models/{name}/versions/{number}/infer", openapi_extra=_INFER_BODY)
async def infer_version(
    request: Request,
    services: ServicesDep,
    version: NumberedVersionDep,
    json_bytes: JsonLength = None,
) -> Response:
    """Predict with a version; see `/v2/models/{reference}/infer`."""
    return await _answer(request, services, version, json_bytes)


def _metadata(services: Services, version: Version) -> dict[str, Any]:
    facts = parse_artifact(services.blobs.read(version.artifact_digest)).facts
    size_px = facts.preprocessing.crop_px
    with services.database.read() as connection:
        numbers = models.get(connection, version.name, version.project).versions
    shapes = {IMAGE: [-1], PIXELS: [-1, 3, size_px, size_px]}
    return {
        "name": version.name,
        "versions": [str(number) for number in numbers],
        "platform": f"graft_{version.architecture}",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": shapes[name]}
            for name, datatype in INPUTS.items()
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, len(version.classes)]}
            for name in OUTPUTS
        ],
        "parameters": {"labels": version.classes, "preprocessing": facts.preprocessing.as_json()},
    }


async def _readiness(services: Services, version: Version) -> dict[str, Any]:
    if await services.inference.health() is None:
        raise InferenceUnavailable("it was asked for its health")
    return {"name": version.name, "version": str(version.version), "ready": True}


async def _answer(
    request: Request, services: Services, version: Version, json_bytes: int | None
) -> Response:
    started = time.perf_counter()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise MediaTypeUnsupported(f"packed by {encoding[:20]}", "the body as it is")
    with services.predicting.reserve(1, version.owner):
        body = await read_body(request, _MAX_INFER_BYTES)
        asked = await run_in_threadpool(parse_infer, body, json_bytes)
        wanted = Wanted(logits=True, preprocessed=asked.preprocessed)
        said = await forward(request, services, version, asked.images, wanted)
    reference = request.path_params.get("reference")  # a number names one version: no shadow
    if reference is not None and not asked.preprocessed:  # which was done for this version
        services.shadows.offer(reference, version, asked.images, said["predictions"])
    content, answer_json_bytes = await run_in_threadpool(_body, version, asked, said["predictions"])
    headers = {"Server-Timing": server_timing(timing_of(said, started))}
    if answer_json_bytes is None:
        return Response(content, media_type="application/json", headers=headers)
    headers[_JSON_LENGTH] = str(answer_json_bytes)
    return Response(content, media_type="application/octet-stream", headers=headers)


def _body(
    version: Version, asked: InferRequest, predictions: list[dict[str, Any]]
) -> tuple[bytes, int | None]:
    """Return the answer's body; one image that cannot be used is the request's error here."""
    for index, prediction in enumerate(predictions):
        if "error" in prediction:
            error = prediction["error"]
            pointer = f"/inputs/0/data/{index}"
            raise ValidationFailed.one(pointer, error["code"], error["message"])
    head: dict[str, Any] = {"model_name": version.name, "model_version": str(version.version)}
    if asked.id is not None:
        head["id"] = asked.id
    values = {
        LOGITS: [prediction["logits"] for prediction in predictions],
        PROBABILITIES: [_in_order(prediction, version.classes) for prediction in predictions],
    }
    return write_answer(head, asked.outputs, values, version.classes)


def _in_order(prediction: dict[str, Any], classes: list[str]) -> list[float]:
    """Return the scores in the order of the classes."""
    scores = {item["label"]: item["score"] for item in prediction["scores"]}
    return [scores[name] for name in classes]
