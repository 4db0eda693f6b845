"""What every call that runs a model does: which version is meant, and its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Path, Request

from jobs.store.models import Version
from models_cache.asgi import unless_client_gone
from models_cache.errors import ArtifactError, StorageError
from models_cache.weights_errors import WeightsError, WeightsUnavailable
from service.errors import ModelUnavailable
from service.inference_client import Wanted
from service.services import REFERENCE_PATTERN, Services

ReferencePath = Annotated[
    str, Path(pattern=REFERENCE_PATTERN, description="`name`, `name@alias` or `name@version`.")
]


async def forward(
    request: Request,
    services: Services,
    version: Version,
    images: Sequence[bytes | memoryview],
    wanted: Wanted,
) -> dict[str, Any]:
    """Return what the inference process says of images; the body has been read.

    Raises:
        ClientGone: The client hung up; what was queued for it is dropped.
        WeightsComing: Pretrained weights have to be fetched first.
        ModelUnavailable: The version is broken on disk: nothing the caller can mend.
        InferenceError: The inference process cannot answer.
    """
    try:
        answer = await unless_client_gone(
            services.inference.predict(version.artifact_digest, images, wanted), request.receive
        )
    except (ArtifactError, StorageError, WeightsError) as error:
        if isinstance(error, WeightsUnavailable):
            await services.missing_weights.fetch(version.artifact_digest, version.project)
        raise ModelUnavailable(version.name, version.version, str(error)) from error
    services.metrics.saw_images(version.name, len(images))
    services.engine_wishes.hear(answer["wanted_engine"], version.project)
    return answer


def timing_of(answer: Mapping[str, Any], started: float) -> dict[str, Any]:
    """Return what an answer cost since `started` (`time.perf_counter`), in milliseconds."""
    return {**answer["timing"], "total_ms": round((time.perf_counter() - started) * 1e3, 3)}


def server_timing(timing: Mapping[str, Any]) -> str:
    """Return the header `Server-Timing` of an answer's times."""
    return ", ".join(
        f"{name.removesuffix('_ms')};dur={value}"
        for name, value in timing.items()
        if name.endswith("_ms")
    )


def model_body(version: Version) -> dict[str, Any]:
    """Return which version an answer is wholly from."""
    return {"name": version.name, "version": version.version, "digest": version.artifact_digest}
