"""Calls about models: versions, aliases, archives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from sqlalchemy import Connection
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, StreamingResponse

from jobs.archives import pack_artifact, unpack_artifact
from jobs.exports import rows as exports
from jobs.store import idempotency, models, shadows
from jobs.store.models import LATEST_ALIAS, Model, NewVersion, Version
from jobs.store.shadows import Compared
from models_cache.artifacts import EVALUATION_FILE, Artifact
from models_cache.durable import canonical_json, sha256_of_bytes
from models_cache.weights_errors import WeightsUnavailable
from service.callers import CallerDep
from service.errors import NothingHere
from service.json_body import json_body, json_request
from service.schemas import (
    AliasBody,
    AliasRequest,
    ComparisonBody,
    Deleted,
    ModelBody,
    Page,
    ShadowBody,
    VersionBody,
)
from service.services import (
    NEEDS_SPACE,
    After,
    IdempotencyKey,
    Limit,
    NamePath,
    Services,
    ServicesDep,
    remove_run_folders,
)
from service.shadowing import ALIAS
from service.uploads import receive

router = APIRouter(prefix="/v1/models", tags=["models"])

VersionPath = Annotated[int, Path(ge=1, le=2**31 - 1)]
AliasPath = Annotated[str, Path(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]
FilePath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_MEDIA_TYPES = {
    "md": "text/markdown; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
_MAX_ARCHIVE_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20


@router.get("")
def list_models(
    services: ServicesDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[ModelBody]:
    """List models by name."""
    with services.database.read() as connection:
        found = models.page(connection, limit + 1, after, caller.project)
        served = models.defaults(connection, [model.name for model in found], caller.project)
    bodies = [_model_body(model, served.get(model.name)) for model in found]
    return Page.of(bodies, limit)


@router.get("/{name}")
def get_model(services: ServicesDep, caller: CallerDep, name: NamePath) -> ModelBody:
    """Return a model with its versions and aliases."""
    with services.database.read() as connection:
        model = models.get(connection, name, caller.project)
        return _model_body(model, models.defaults(connection, [name], caller.project).get(name))


@router.delete("/{name}", status_code=204, responses={200: {"model": Deleted}})
def delete_model(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    accept: Annotated[str, Header(description="With `application/json` the answer is 200.")] = "",
) -> Response:
    """Delete a model with its exports; requests under way are answered, later ones find nothing."""
    with services.database.write("model_delete") as connection:
        found = models.versions(connection, name, caller.project)
        models.remove(connection, name, caller.project)
        exported = _remove_exports(connection, found)
    remove_run_folders(services, exported)
    if "application/json" not in accept:
        return Response(status_code=204)
    return JSONResponse(Deleted(id=name, object="model").model_dump())  # OpenAI's client reads it


@router.get("/{name}/versions")
def list_versions(services: ServicesDep, caller: CallerDep, name: NamePath) -> Page[VersionBody]:
    """List the versions of a model, oldest first."""
    with services.database.read() as connection:
        aliases = models.get(connection, name, caller.project).aliases
        found = models.versions(connection, name, caller.project)
    data = [_version_body(version, aliases) for version in found]
    return Page(data=data, has_more=False, next=None)


@router.post("/{name}/versions", status_code=201, dependencies=[NEEDS_SPACE])
async def import_version(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    idempotency_key: IdempotencyKey = None,
) -> VersionBody:
    """Import an artifact that was downloaded as an archive; checked like a published one.

    Pretrained weights that are not here are fetched; `weights-coming` says to import again then.
    """
    folder = services.settings.data_dir / "uploads"
    async with receive(request, folder, _MAX_ARCHIVE_BYTES) as upload:
        artifact = await run_in_threadpool(unpack_artifact, services.blobs, upload.path)
    # Loaded before it is published: the golden outputs must be reproduced.
    try:
        await services.inference.load(artifact.digest)
    except WeightsUnavailable:
        await services.missing_weights.fetch(artifact.digest, caller.project)
        raise
    new = _new_version(caller.project, name, artifact)
    body = await run_in_threadpool(_publish, services, new, idempotency_key)
    response.headers["Location"] = f"/v1/models/{name}/versions/{body.version}"
    return body


@router.get("/{name}/versions/{version}")
def get_version(
    services: ServicesDep, caller: CallerDep, name: NamePath, version: VersionPath
) -> VersionBody:
    """Return one version."""
    with services.database.read() as connection:
        found = models.version(connection, name, version, caller.project)
        return _version_body(found, models.aliases_of(connection, name, caller.project))


@router.delete("/{name}/versions/{version}", status_code=204)
def delete_version(
    services: ServicesDep, caller: CallerDep, name: NamePath, version: VersionPath
) -> Response:
    """Delete a version that no alias points to, and its exports; its number is not used again."""
    with services.database.write("version_delete") as connection:
        found = models.version(connection, name, version, caller.project)
        models.remove_version(connection, name, version, caller.project)
        exported = _remove_exports(connection, [found])
    remove_run_folders(services, exported)
    return Response(status_code=204)


@router.get("/{name}/versions/{version}/archive", response_class=StreamingResponse)
def get_archive(
    services: ServicesDep, caller: CallerDep, name: NamePath, version: VersionPath
) -> StreamingResponse:
    """Download the artifact as a zip: weights, labels, preprocessing, metrics, lineage."""
    with services.database.read() as connection:
        found = models.version(connection, name, version, caller.project)
    # A file without a name: nothing is left, whatever becomes of the client.
    archive = tempfile.TemporaryFile(dir=services.settings.data_dir)  # noqa: SIM115 - closed below
    try:
        size_bytes = pack_artifact(services.blobs, found.files, archive)
    except BaseException:
        archive.close()
        raise
    headers = {
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="{name}-{version}.zip"',
    }
    chunks = iter(lambda: archive.read(_CHUNK_BYTES), b"")
    closing = BackgroundTask(archive.close)
    return StreamingResponse(
        chunks, media_type="application/zip", headers=headers, background=closing
    )


@router.get("/{name}/versions/{version}/files/{file}", response_class=FileResponse)
def get_file(
    services: ServicesDep, caller: CallerDep, name: NamePath, version: VersionPath, file: FilePath
) -> FileResponse:
    """Return one file of the artifact: the model card `README.md`, a plot, the weights."""
    with services.database.read() as connection:
        found = models.version(connection, name, version, caller.project)
    if file not in found.files:
        raise NothingHere
    sha256 = str(found.files[file]["sha256"])
    with services.blobs.open(sha256):  # a missing file is an answer, not a broken connection
        path = services.blobs.local_path(sha256)
    kind = _MEDIA_TYPES.get(file.rpartition(".")[2], "application/octet-stream")
    return FileResponse(path, media_type=kind, headers={"ETag": f'"{sha256}"'})


@router.get("/{name}/versions/{version}/evaluation")
def get_evaluation(
    services: ServicesDep, caller: CallerDep, name: NamePath, version: VersionPath
) -> dict[str, Any]:
    """Return the evaluation: figures with intervals, per class, per image, and calibration."""
    with services.database.read() as connection:
        found = models.version(connection, name, version, caller.project)
    if found.evaluation_sha256 is None:
        raise NothingHere
    evaluation: dict[str, Any] = json.loads(services.blobs.read(found.evaluation_sha256))
    return evaluation


@router.put("/{name}/aliases/{alias}", openapi_extra=json_request(AliasRequest))
def put_alias(
    services: ServicesDep,
    caller: CallerDep,
    name: NamePath,
    alias: AliasPath,
    body: Annotated[AliasRequest, json_body(AliasRequest)],
) -> AliasBody:
    """Point an alias to a version: promotion and rollback; `if_current` makes it a swap."""
    with services.database.write("alias_put") as connection:
        models.set_alias(
            connection,
            name,
            alias,
            body.version,
            if_current=body.if_current,
            project=caller.project,
        )
    return AliasBody(model=name, alias=alias, version=body.version)


@router.delete("/{name}/aliases/{alias}", status_code=204)
def delete_alias(
    services: ServicesDep, caller: CallerDep, name: NamePath, alias: AliasPath
) -> Response:
    """Remove an alias; the version it points to stays. `default` and `latest` cannot go."""
    with services.database.write("alias_delete") as connection:
        models.remove_alias(connection, name, alias, caller.project)
    return Response(status_code=204)


@router.get("/{name}/shadow")
def get_shadow(services: ServicesDep, caller: CallerDep, name: NamePath) -> ShadowBody:
    """Return how the version of alias `shadow`, and earlier ones, answered beside others."""
    with services.database.read() as connection:
        aliases = models.get(connection, name, caller.project).aliases
        found = shadows.of_model(connection, name, caller.project)
    return ShadowBody(
        model=name,
        version=aliases.get(ALIAS),
        share=services.settings.shadow_fraction,
        comparisons=[_comparison_body(pair) for pair in found],
    )


def _comparison_body(pair: Compared) -> ComparisonBody:
    return ComparisonBody(
        version=pair.version,
        shadow=pair.shadow,
        compared=pair.compared,
        agreed=pair.agreed,
        agreement=pair.agreed / pair.compared if pair.compared else None,
        mean_difference=pair.sum_difference / pair.compared if pair.compared else None,
        largest_difference=pair.most_difference,
        failed=pair.failed,
        since=pair.since,
        until=pair.until,
    )


def _remove_exports(connection: Connection, versions: Iterable[Version]) -> list[str]:
    """Remove what was exported of versions that go; return the ids of the jobs that did it."""
    return [job_id for version in versions for job_id in exports.remove_all(connection, version)]


def _new_version(project: str, name: str, artifact: Artifact) -> NewVersion:
    facts, evaluation = artifact.facts, artifact.files.get(EVALUATION_FILE)
    return NewVersion(
        project=project,
        name=name,
        artifact_digest=artifact.digest,
        files=artifact.files_as_json(),
        task=facts.task,
        architecture=facts.architecture,
        classes=list(facts.classes),
        metrics=dict(facts.metrics),
        evaluation_sha256=None if evaluation is None else evaluation.sha256,
    )


def _publish(services: Services, new: NewVersion, idempotency_key: str | None) -> VersionBody:
    fingerprint = sha256_of_bytes(canonical_json(["models", new.name, new.artifact_digest]))
    with services.database.write("import") as connection:
        made = idempotency.once(
            connection,
            idempotency_key,
            fingerprint,
            lambda: _insert(connection, new),
            new.project,
        )
        number = int(made.rpartition("@")[2])
        version = models.version(connection, new.name, number, new.project)
        return _version_body(version, models.aliases_of(connection, new.name, new.project))


def _insert(connection: Connection, new: NewVersion) -> str:
    version = models.publish(connection, new, promote=False)
    return f"{version.name}@{version.version}"


def _model_body(model: Model, served: Version | None) -> ModelBody:
    aliases = dict(model.aliases)
    if model.versions:
        aliases[LATEST_ALIAS] = max(model.versions)
    return ModelBody(
        id=model.name,
        created=int(model.created_at.timestamp()),
        owned_by="graft",
        name=model.name,
        versions=model.versions,
        aliases=aliases,
        default=None if served is None else _version_body(served, model.aliases),
        created_at=model.created_at,
    )


def _version_body(version: Version, aliases: dict[str, int]) -> VersionBody:
    return VersionBody(
        model=version.name,
        version=version.version,
        digest=version.artifact_digest,
        task=version.task,
        architecture=version.architecture,
        classes=version.classes,
        metrics=version.metrics,
        files=version.files,
        job=version.job_id,
        dataset=version.dataset_id,
        aliases=sorted(alias for alias, number in aliases.items() if number == version.version),
        created_at=version.created_at,
    )
