"""Calls for operators: alive, ready."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from jobs.store import workers
from service.errors import NotReady
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
    with suppress(SQLAlchemyError):  # away for the moment: not ready, which is the answer
        checks = await run_in_threadpool(_look, services)
    health = await services.inference.health()
    checks["inference"] = health is not None
    missing = sorted(name for name, fine in checks.items() if not fine)
    if missing:
        raise NotReady(", ".join(missing))
    return {"status": "ready", "checks": checks, "device": (health or {}).get("device")}


def _look(services: Services) -> dict[str, Any]:
    if not services.database.is_migrated():
        return {"database": False, "worker": False}
    silence = timedelta(seconds=services.settings.lease_seconds)
    with services.database.read() as connection:
        return {"database": True, "worker": workers.count_alive(connection, silence) > 0}
