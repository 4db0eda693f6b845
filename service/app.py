"""The composition root of the api process: settings in, application out. Imports no torch."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from jobs.store.database import Database
from models_cache import faults
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.disk_space import LowWater
from models_cache.neighbours import NeighbourStore
from models_cache.room import Room
from models_cache.weights import WeightsVault
from service import access, problems
from service.access_errors import DoorsOpen
from service.audit import AuditLog
from service.audit_trail import AuditTrail
from service.engine_wishes import EngineWishes
from service.folder_sizes import FolderSizes
from service.indexing import Indexer
from service.inference_client import InferenceClient
from service.key_ring import KeyRing
from service.manifests import RecentManifests
from service.metrics import ServiceMetrics
from service.middleware import BrowserGuard, HeadAsGet
from service.missing_weights import MissingWeights
from service.rates import Rates
from service.routers import (
    audit,
    backbones,
    datasets,
    exports,
    features,
    feedback,
    hugging_face,
    jobs,
    keys,
    models,
    open_inference,
    openai_files,
    openai_jobs,
    openai_uploads,
    ops,
    predict,
    webhooks,
)
from service.services import Services
from service.settings import Settings
from service.shadowing import Shadows
from service.uploads import LEFTOVER_SECONDS
from service.version import VERSION
from service.version_finder import VersionFinder

_SWEEP_SECONDS = 600.0
_MOST_PREDICTIONS = 512  # requests at once, each with its images in memory
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})  # asked all the time
#: Spans of requests, where somebody collects them (`models_cache.tracing`).
_TRACED: TelemetryConfig = {
    "auto_configure": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "exclude": lambda scope: scope["path"] in _UNTRACED,
}


def create_app(settings: Settings) -> FastAPI:
    """Return the application of one api process.

    Args:
        settings: Every value it needs; nothing is read from elsewhere.
    """
    services = build_services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep_leftovers(settings.data_dir / "uploads"))
        yield
        sweeping.cancel()
        await services.indexer.close()
        await services.shadows.close()
        await services.engine_wishes.close()
        await services.key_ring.close()
        await services.inference.close()
        services.audit.close()
        services.database.close()

    app = FastAPIOffline(
        title="Graft",
        version=VERSION,
        description="Upload labelled images, get a served vision model in seconds.",
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(access.admit)],
        telemetry=_TRACED,
        responses=problems.DOCUMENTED,
    )
    app.state.services = services
    problems.install(app)
    for router in (
        predict.router,  # first: routes are tried in their order
        datasets.router,
        backbones.router,
        jobs.router,
        webhooks.router,
        models.router,
        exports.router,
        features.router,
        feedback.router,
        open_inference.router,
        hugging_face.router,
        openai_files.router,
        openai_uploads.router,
        openai_jobs.router,
        keys.router,
        audit.router,
        ops.router,
    ):
        app.include_router(router)
    access.describe(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BrowserGuard, local_names_only=settings.is_loopback)
    app.add_middleware(AuditTrail, log=services.audit)
    return app


def build_services(settings: Settings) -> Services:
    """Build what handlers work with; migrates the database.

    Raises:
        DoorsOpen: Others could reach the service, and nothing would ask who they are.
    """
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings.database_address, settings.ballast)
    database.migrate()
    key_ring = KeyRing(database, settings.key_limits)
    if not (settings.is_loopback or settings.allow_anonymous or key_ring.keys_exist()):
        raise DoorsOpen(settings.host)
    metrics = ServiceMetrics()
    with database.read() as connection:
        metrics.jobs.begin(connection)
    catalogue = Catalogue.load(extra_files=[Path(path) for path in settings.weights_catalog])
    blobs = BlobStore(settings.data_dir / "blobs")
    versions = VersionFinder(database)
    inference = InferenceClient(settings.resolved_inference_url, settings.predict_timeout_seconds)
    return Services(
        settings=settings,
        database=database,
        blobs=blobs,
        manifests=RecentManifests(blobs),
        catalogue=catalogue,
        vault=WeightsVault(
            settings.data_dir / "weights",
            sources=settings.weights_sources,
            offline=settings.offline,
            egress=settings.egress,
        ),
        inference=inference,
        low_water=LowWater(settings.data_dir, settings.low_water_bytes),
        predicting=Room(_MOST_PREDICTIONS),
        indexer=Indexer(
            blobs, NeighbourStore(settings.data_dir / "cache" / "neighbours"), inference
        ),
        versions=versions,
        engine_wishes=EngineWishes(database),
        missing_weights=MissingWeights(database, blobs, catalogue),
        shadows=Shadows(database, versions, inference, settings.shadow_fraction),
        key_ring=key_ring,
        rates=Rates(),
        false_keys=Rates(),
        audit=AuditLog(settings.data_dir / "audit", settings.audit_bytes),
        folder_sizes=FolderSizes(settings.data_dir),
        metrics=metrics,
    )


async def _sweep_leftovers(uploads: Path) -> None:
    """Remove, now and then, what an api process that was killed had received."""
    while True:
        await run_in_threadpool(_remove_leftovers, uploads)
        await asyncio.sleep(_SWEEP_SECONDS)


def _remove_leftovers(uploads: Path) -> None:
    for path in uploads.glob("*"):
        with suppress(FileNotFoundError):  # another api was faster
            if time.time() - path.stat().st_mtime < LEFTOVER_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
