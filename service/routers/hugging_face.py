"""The image-classification task as Hugging Face's clients call it."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from models_cache.errors import from_wire
from service import schemas
from service.callers import CallerDep
from service.errors import ValidationFailed
from service.image_bodies import MAX_BODY_BYTES, decode_base64
from service.inference_client import Wanted
from service.json_body import parse_json, read_body, validate
from service.services import ServicesDep
from service.serving import ReferencePath, forward, server_timing, timing_of

router = APIRouter(prefix="/hf", tags=["hugging face"])

_DEFAULT_TOP_K = 5  # as that task's
_MAX_BODY_BYTES = MAX_BODY_BYTES * 4 // 3 + (1 << 16)


class TaskParameters(schemas.Request):
    """What the client may set."""

    top_k: int | None = Field(None, ge=1, le=10_000, description="Default: 5.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="What makes scores of logits; default: what the model was trained with."
    )


class TaskRequest(schemas.Request):
    """The JSON form: one image in base64."""

    inputs: str = Field(min_length=1, description="The encoded image in base64.")
    parameters: TaskParameters = Field(default_factory=TaskParameters)


class LabelScore(BaseModel):
    """One label of the answer."""

    label: str
    score: float


_TASK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": TaskRequest.model_json_schema()},
        },
    }
}


@router.post("/{reference}", openapi_extra=_TASK_BODY)
async def classify(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
) -> list[LabelScore]:
    """Classify one image: raw bytes of any content type, or base64 in JSON with parameters."""
    started = time.perf_counter()
    version = await services.versions.find(reference, caller.project)
    with services.predicting.reserve(1, version.owner):
        image, parameters = await _read(request)
        function = parameters.function_to_apply
        wanted = Wanted(logits=function is not None)
        answer = await forward(request, services, version, [image], wanted)
    services.shadows.offer(reference, version, [image], answer["predictions"])
    (prediction,) = answer["predictions"]
    if "error" in prediction:
        raise from_wire(prediction["error"])
    response.headers["Server-Timing"] = server_timing(timing_of(answer, started))
    scores = [LabelScore(**item) for item in prediction["scores"]]
    if function is not None:
        applied = _applied(function, prediction["logits"])
        named = zip(version.classes, applied, strict=True)
        scores = [LabelScore(label=name, score=score) for name, score in named]
        scores.sort(key=lambda item: -item.score)
    return scores[: parameters.top_k or _DEFAULT_TOP_K]


async def _read(request: Request) -> tuple[bytes, TaskParameters]:
    """Return the encoded image and what is asked of it."""
    body = await read_body(request, _MAX_BODY_BYTES)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        asked = await run_in_threadpool(_parse, body)
        return await run_in_threadpool(decode_base64, asked.inputs, "/inputs"), asked.parameters
    if not body:
        raise ValidationFailed.one("", "empty-body", "send the bytes of an image")
    return body, TaskParameters()


def _parse(body: bytes) -> TaskRequest:
    return validate(TaskRequest, parse_json(body))


def _applied(function: Literal["softmax", "sigmoid", "none"], logits: list[float]) -> list[float]:
    """Return the scores that a function makes of logits."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return [1 / (1 + math.exp(-logit)) if logit > -700 else 0.0 for logit in logits]
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return [power / sum(powers) for power in powers]
