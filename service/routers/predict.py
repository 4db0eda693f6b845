"""Predictions: raw image, multipart or JSON in, labels with scores out."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from models_cache.errors import from_wire
from service.callers import CallerDep
from service.image_bodies import IMAGES_BODY, read_images
from service.inference_client import Wanted
from service.services import ServicesDep, new_id
from service.serving import ReferencePath, forward, model_body, server_timing, timing_of

router = APIRouter(prefix="/v1/models", tags=["predict"])


async def _wanted(  # not `def`: that is run in a thread
    top_k: Annotated[int | None, Query(ge=1, le=10_000, description="Default: all labels.")] = None,
    max_error: Annotated[
        float | None,
        Query(gt=0, lt=1, description="Abstain rather than be wrong more often than this."),
    ] = None,
    timeout_seconds: Annotated[
        float | None, Query(gt=0, le=3600, description="Longest wait; at most the service's own.")
    ] = None,
) -> Wanted:
    return Wanted(top_k, max_error, timeout_seconds=timeout_seconds)


WantedDep = Annotated[Wanted, Depends(_wanted)]


@router.post("/{reference}/predict", openapi_extra=IMAGES_BODY, response_model=dict[str, Any])
async def predict(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
    wanted: WantedDep,
) -> Response:
    """Predict one image (raw body) or up to 32 (multipart `files`, or JSON `inputs`)."""
    started = time.perf_counter()
    version = await services.versions.find(reference, caller.project)
    with services.predicting.reserve(1, version.owner):
        images, alone = await read_images(request)
        answer = await forward(request, services, version, images, wanted)
    services.shadows.offer(reference, version, images, answer["predictions"])
    predictions = [_prediction(item) for item in answer["predictions"]]
    if alone and "error" in predictions[0]:
        raise from_wire(answer["predictions"][0]["error"])
    timing = timing_of(answer, started)
    body = {
        "id": new_id("pred"),
        "task": version.task,
        "model": model_body(version),
        "predictions": predictions,
        "abstention": answer["abstention"],
        "timing": timing,
    }
    # As it is: FastAPI would copy every score to see whether it is JSON
    return JSONResponse(body, headers={"Server-Timing": server_timing(timing)})


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
