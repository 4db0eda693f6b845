"""Calls for operators: alive, ready, measured."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from jobs.store import figures, jobs, webhooks, workers
from jobs.store.database import DATABASE_AWAY, utc_now
from service.errors import NotReady
from service.metrics import Backlog, Surroundings
from service.services import Services, ServicesDep

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the api process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: ServicesDep) -> dict[str, Any]:
    """Say that the database is migrated, inference answers and a worker is alive."""
    checks: dict[str, Any] = {"database": False, "worker": False}
    with suppress(*DATABASE_AWAY):  # away for the moment: not ready, which is the answer
        checks = await run_in_threadpool(_look, services)
    health = await services.inference.health()
    checks["inference"] = health is not None
    missing = sorted(name for name, fine in checks.items() if not fine)
    if missing:
        raise NotReady(", ".join(missing))
    return {"status": "ready", "checks": checks, "device": (health or {}).get("device")}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: ServicesDep) -> Response:
    """Return what api and inference count, the jobs and the disk, in Prometheus' text format."""
    of_inference, backlog = await asyncio.gather(
        services.inference.metrics(), run_in_threadpool(_backlog, services)
    )
    disk = shutil.disk_usage(services.settings.data_dir)
    sizes = services.folder_sizes.latest()
    seen = Surroundings(backlog, disk.free, disk.total, sizes, of_inference is not None)
    page = services.metrics.page(seen)
    return Response(page + (of_inference or b""), media_type=CONTENT_TYPE_LATEST)


def _backlog(services: Services) -> Backlog | None:
    """Return what the database says, or None if it does not answer."""
    silence = timedelta(seconds=services.settings.lease_seconds)
    try:
        with services.database.read() as connection:
            counts = jobs.count_by_status(connection)
            since = jobs.queued_since(connection)
            alive = workers.count_alive(connection, silence)
            messages = webhooks.count_by_status(connection)
            health = figures.health(connection)
            services.metrics.jobs.look(connection)
    except DATABASE_AWAY:
        return None
    age_seconds = 0.0 if since is None else (utc_now() - since).total_seconds()
    by_state = {state.value: count for state, count in counts.items()}
    return Backlog(by_state, age_seconds, alive, health, messages)


def _look(services: Services) -> dict[str, Any]:
    if not services.database.is_migrated():
        return {"database": False, "worker": False}
    silence = timedelta(seconds=services.settings.lease_seconds)
    with services.database.read() as connection:
        return {"database": True, "worker": workers.count_alive(connection, silence) > 0}
