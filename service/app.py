"""The composition root of the api process: settings in, application out. Imports no torch."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uuid_utils.compat as uuids
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from jobs.store.database import Database
from models_cache import faults
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.weights import WeightsVault
from service import problems
from service.inference_client import InferenceClient
from service.routers import backbones, datasets, jobs, models, ops, predict
from service.services import Services
from service.settings import Settings
from service.version import VERSION

log = logging.getLogger("graft.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LEFTOVER_SECONDS = 3600.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(settings: Settings) -> FastAPI:
    """Return the application of one api process.

    Args:
        settings: Every value it needs; nothing is read from elsewhere.
    """
    services = build_services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await services.inference.close()
        services.database.close()

    app = FastAPI(
        title="Graft",
        version=VERSION,
        description="Upload labelled images, get a served vision model in seconds.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    problems.install(app)
    for router in (
        datasets.router,
        backbones.router,
        jobs.router,
        models.router,
        predict.router,
        ops.router,
    ):
        app.include_router(router)
    app.add_middleware(RequestLog)
    return app


def build_services(settings: Settings) -> Services:
    """Build what handlers work with; migrates the database."""
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_leftovers(settings.data_dir / "uploads")
    database = Database(settings.resolved_database_url)
    database.migrate()
    catalogues = [Path(path) for path in settings.weights_catalog]
    return Services(
        settings=settings,
        database=database,
        blobs=BlobStore(settings.data_dir / "blobs"),
        catalogue=Catalogue.load(extra_files=catalogues),
        vault=WeightsVault(
            settings.data_dir / "weights",
            sources=settings.weights_sources,
            offline=settings.offline,
        ),
        inference=InferenceClient(settings.resolved_inference_url),
    )


def _remove_leftovers(uploads: Path) -> None:
    """Remove what an api process that was killed had received; another api's is younger."""
    for path in uploads.glob("*"):
        if time.time() - path.stat().st_mtime < _LEFTOVER_SECONDS:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class RequestLog:
    """Gives each request an id, answers with it, and logs one line per request.

    A client that hangs up while it sends is no error: one line, no traceback.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or uuids.uuid7().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 499  # as nginx calls a client that hung up

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                names = {name for name, _ in message["headers"]}
                message["headers"] += [pair for pair in headers if pair[0] not in names]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            pass
        finally:
            milliseconds = (time.perf_counter() - started) * 1e3
            path = ascii(scope["path"][:200])[1:-1]
            log.info("%s %s %d %.1fms %s", scope["method"], path, status, milliseconds, request_id)


def _given_id(scope: Scope) -> str | None:
    """Return the request id a proxy gave, if it is a harmless one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) else None
    return None
