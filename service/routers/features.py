"""Calls about what a model's backbone makes of images: embeddings, and the nearest images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from jobs.datasets.manifest import Manifest
from jobs.errors import DatasetNotReady, DatasetRejected
from jobs.store import datasets
from jobs.store.models import Version
from models_cache.errors import from_wire
from models_cache.neighbours import nearest, unit_rows
from service.callers import CallerDep
from service.errors import IndexMissing
from service.image_bodies import IMAGES_BODY, read_images
from service.inference_client import FEATURES
from service.routers.datasets import labels_body
from service.services import Services, ServicesDep, new_id
from service.serving import ReferencePath, forward, model_body

router = APIRouter(prefix="/v1/models", tags=["predict"])


@router.post("/{reference}/embed", openapi_extra=IMAGES_BODY)
async def embed(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
    normalize: Annotated[bool, Query(description="Divide each embedding by its length.")] = False,
) -> dict[str, Any]:
    """Return the features of images, as the model's head sees them; the body is as of predict."""
    started = time.perf_counter()
    version = await services.versions.find(reference, caller.project)
    found = await _features(request, services, version)
    if normalize:
        found = [
            item if "error" in item else {"features": unit_rows([item["features"]])[0].tolist()}
            for item in found
        ]
    return {
        "id": new_id("emb"),
        "model": model_body(version),
        "dimensions": max((len(item.get("features", ())) for item in found), default=0),
        "embeddings": [
            {"embedding": None, "error": item["error"]}
            if "error" in item
            else {"embedding": item["features"]}
            for item in found
        ],
        "timing": {"total_ms": round((time.perf_counter() - started) * 1e3, 3)},
    }


@router.post("/{reference}/similar", openapi_extra=IMAGES_BODY)
async def similar(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    reference: ReferencePath,
    k: Annotated[int, Query(ge=1, le=100, description="Neighbours of each image.")] = 5,
    dataset: Annotated[
        str | None,
        Query(
            pattern=r"^[A-Za-z0-9_]{1,48}$",
            description="Whose images are searched; default: those the model learned from.",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, Query(description="Default: all.")
    ] = None,
) -> dict[str, Any]:
    """Return the nearest images of a data set; its index is built at the first call."""
    started = time.perf_counter()
    version = await services.versions.find(reference, caller.project)
    dataset_id, manifest = await run_in_threadpool(_images, services, version, dataset)
    found = await _features(request, services, version)
    rows = await services.indexer.rows(version, manifest)
    among = np.array(
        [i for i, image in enumerate(manifest.images) if split in (None, image.split)], np.int64
    )

    results = []
    for item in found:
        if "features" in item:
            query = unit_rows([item["features"]])
            places, cosines = await run_in_threadpool(nearest, rows, query, k, among)
            item = {"neighbours": _neighbours(dataset_id, manifest, places[0], cosines[0])}
        results.append(item)
    return {
        "id": new_id("sim"),
        "model": model_body(version),
        "dataset": dataset_id,
        "searched": len(among),
        "results": results,
        "timing": {"total_ms": round((time.perf_counter() - started) * 1e3, 3)},
    }


async def _features(request: Request, services: Services, version: Version) -> list[dict[str, Any]]:
    """Return `{"features"}` or `{"error"}` of each image of a request; one raw image must do."""
    with services.predicting.reserve(1, version.owner):
        images, alone = await read_images(request)
        answer = await forward(request, services, version, images, FEATURES)
    found: list[dict[str, Any]] = []
    for item in answer["predictions"]:
        if "error" not in item:
            found.append({"features": item["features"]})
        elif alone:
            raise from_wire(item["error"])
        else:
            error = item["error"]
            found.append({"error": {"code": error["code"], "detail": error["message"]}})
    return found


def _neighbours(
    dataset_id: str, manifest: Manifest, places: Sequence[int], cosines: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the images at some places of a manifest, as the answer tells of them."""
    found = []
    for place, cosine in zip(places, cosines, strict=True):
        image = manifest.images[place]
        found.append(
            {
                "image": image.id,
                **labels_body(image, manifest.classes),
                "split": image.split,
                "similarity": round(float(cosine), 6),
                "thumbnail": f"/v1/datasets/{dataset_id}/images/{image.id}/thumbnail",
            }
        )
    return found


def _images(services: Services, version: Version, dataset_id: str | None) -> tuple[str, Manifest]:
    """Return the data set that is searched.

    Raises:
        IndexMissing: None was named, and the model does not say what it learned from.
        DatasetNotFound, DatasetRejected, DatasetNotReady: The data set cannot be used.
    """
    chosen = dataset_id or version.dataset_id
    if chosen is None:
        raise IndexMissing(version.name, version.version)
    with services.database.read() as connection:
        dataset = datasets.get(connection, chosen, version.project)
    if dataset.status == "rejected":
        raise DatasetRejected(dataset.id)
    if dataset.manifest_sha256 is None:
        raise DatasetNotReady(dataset.id, dataset.status)
    return dataset.id, services.manifests.get(dataset.manifest_sha256)
