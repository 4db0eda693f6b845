"""Calls about backbones, their weights, and recipes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from jobs import weights_fetching
from jobs.errors import RecipeInvalid
from jobs.recipes import RECIPES
from jobs.store import jobs
from jobs.store.jobs import Job
from models_cache.catalogue import BackboneInfo, WeightsInfo
from models_cache.weights_errors import BackboneUnknown
from service.callers import CallerDep
from service.errors import AddressUnknown
from service.json_body import json_body, json_request
from service.recipe_schemas import parameters_model
from service.schemas import DownloadRequest, Page
from service.services import NEEDS_SPACE, After, Limit, Services, ServicesDep

router = APIRouter(prefix="/v1", tags=["backbones"])

_ArchitecturePath = Annotated[str, Path(pattern=r"^[a-z0-9_]{1,64}$")]
RecipePath = Annotated[str, Path(pattern=r"^[a-z_]{1,32}$")]


def backbone_of(services: ServicesDep, architecture: _ArchitecturePath) -> BackboneInfo:
    """Return the backbone of the path.

    Raises:
        AddressUnknown: There is none of that name.
    """
    try:
        return services.catalogue.backbone(architecture)
    except BackboneUnknown as error:
        raise AddressUnknown(str(error)) from error


BackboneDep = Annotated[BackboneInfo, Depends(backbone_of)]


@router.get("/backbones")
def list_backbones(
    services: ServicesDep,
    task: Annotated[str | None, Query(pattern=r"^[a-z]{1,32}$")] = None,
    downloaded: Annotated[
        bool | None, Query(description="Only those with weights on disk.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[dict[str, Any]]:
    """List backbones by name with their weights, licence, size, accuracy, and what is on disk."""
    recent = _recent_downloads(services)
    bodies = [
        _backbone_body(services, backbone, recent)
        for backbone in services.catalogue.architectures()
        if task in (None, "classification") and (after is None or backbone.architecture > after)
    ]
    if downloaded is not None:
        bodies = [body for body in bodies if body["downloaded"] is downloaded]
    return _page(bodies, limit)


@router.get("/backbones/{architecture}")
def get_backbone(services: ServicesDep, backbone: BackboneDep) -> dict[str, Any]:
    """Return one backbone."""
    return _backbone_body(services, backbone, _recent_downloads(services))


@router.post(
    "/backbones/{architecture}/download",
    status_code=202,
    openapi_extra=json_request(DownloadRequest, required=False),
    dependencies=[NEEDS_SPACE],
)
def download(
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    backbone: BackboneDep,
    body: Annotated[DownloadRequest, json_body(DownloadRequest, default=True)],
) -> dict[str, Any]:
    """Fetch weights in the background; the backbone's `weights[].download` shows progress."""
    architecture = backbone.architecture
    services.catalogue.candidates(architecture, body.weights)
    with services.database.write("download") as connection:
        weights_fetching.queue(connection, architecture, body.weights, caller.project)
    response.headers["Location"] = f"/v1/backbones/{architecture}"
    return _backbone_body(services, backbone, _recent_downloads(services))


@router.get("/recipes", tags=["recipes"])
def list_recipes(limit: Limit = 20, after: After = None) -> Page[dict[str, Any]]:
    """List the recipes by name with what each does and what to expect of it."""
    bodies = [
        {"id": name, "object": "recipe", "name": name, "description": recipe.__doc__}
        for name, recipe in sorted(RECIPES.items())
        if after is None or name > after
    ]
    return _page(bodies, limit)


@router.get("/recipes/{name}/schema", tags=["recipes"])
def get_schema(name: RecipePath) -> dict[str, Any]:
    """Return the JSON Schema of a recipe's parameters, with defaults and bounds."""
    try:
        schema: dict[str, Any] = parameters_model(name).model_json_schema()
    except RecipeInvalid as error:
        raise AddressUnknown(str(error)) from error
    return schema


def _page(bodies: list[dict[str, Any]], limit: int) -> Page[dict[str, Any]]:
    more = len(bodies) > limit
    return Page(data=bodies[:limit], has_more=more, next=bodies[limit - 1]["id"] if more else None)


def _recent_downloads(services: Services) -> dict[tuple[str, str], Job]:
    """Return the newest download of each (architecture, weights)."""
    with services.database.read() as connection:
        found = jobs.newest_of_type(connection, weights_fetching.TYPE, limit=200)
    recent: dict[tuple[str, str], Job] = {}
    for job in found:
        recent.setdefault((job.spec["architecture"], job.spec["weights"]), job)
    return recent


def _backbone_body(
    services: Services, backbone: BackboneInfo, recent: dict[tuple[str, str], Job]
) -> dict[str, Any]:
    weights = [_weights_body(services, backbone, info, recent) for info in backbone.weights]
    return {
        "id": backbone.architecture,
        "object": "backbone",
        "architecture": backbone.architecture,
        "task": "classification",
        "family": backbone.family,
        "default": backbone.default,
        "downloaded": any(item["downloaded"] for item in weights),
        "weights": weights,
    }


def _weights_body(
    services: Services,
    backbone: BackboneInfo,
    info: WeightsInfo,
    recent: dict[tuple[str, str], Job],
) -> dict[str, Any]:
    verified = services.vault.verified(info)
    job = recent.get((info.architecture, info.name))
    if job is None and info.name == backbone.default:
        job = recent.get((info.architecture, "DEFAULT"))
    return {
        "name": info.name,
        "file": info.file,
        "sha256": services.vault.sha256_of(info),
        "verified": verified,
        "downloaded": services.vault.have(info),
        "download": None if job is None else _download_body(job),
        "parameters": info.parameters,
        "gflops": info.gflops,
        "size_bytes": info.size_bytes,
        "accuracy_top1": info.accuracy_top1,
        "accuracy_top5": info.accuracy_top5,
        "preprocessing": info.preprocessing.as_json(),
        "license": info.license,
        "source": info.source,
        "origin": info.origin,
    }


def _download_body(job: Job) -> dict[str, Any]:
    error = None
    if job.error is not None:
        error = {"code": job.error["code"], "detail": job.error["message"]}
    return {"status": job.status.value, "progress": job.progress, "error": error}
