"""`graft ping api | inference | worker`: whether a process of this machine works: health checks."""

from __future__ import annotations

import asyncio
import socket
import sys
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from service.cli.configuration import load_settings
from service.own_address import own_url
from service.settings import Settings

_TIMEOUT_SECONDS = 5.0


class Process(StrEnum):
    """What can be asked."""

    API = "api"
    INFERENCE = "inference"
    WORKER = "worker"


def ping(
    process: Annotated[Process, typer.Argument(help="Which process of this machine to ask.")],
) -> None:
    """Ask a process that was started with the same settings; status 1 if it does not answer."""
    works = {
        Process.API: _api_answers,
        Process.INFERENCE: _inference_answers,
        Process.WORKER: _worker_beats,
    }[process]
    if not works(load_settings()):
        print(f"graft: {process} does not answer", file=sys.stderr)
        raise typer.Exit(1)


def _api_answers(settings: Settings) -> bool:
    return asyncio.run(_answers(own_url(settings.host, settings.port)))


def _inference_answers(settings: Settings) -> bool:
    return asyncio.run(_answers(settings.resolved_inference_url))


async def _answers(url: str) -> bool:
    from models_cache.errors import InferenceUnavailable
    from service.http_connections import HttpConnections

    try:
        answer = await HttpConnections(url).request("GET", "/healthz", b"", _TIMEOUT_SECONDS)
    except InferenceUnavailable:
        return False
    return answer.status == 200


def _worker_beats(settings: Settings) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    from jobs.store import workers
    from jobs.store.database import Database

    silence = timedelta(seconds=settings.lease_seconds)
    database = Database(settings.database_address)
    try:
        with database.read() as connection:
            return workers.count_alive(connection, silence, host=socket.gethostname()) > 0
    except SQLAlchemyError:
        return False
    finally:
        database.close()
