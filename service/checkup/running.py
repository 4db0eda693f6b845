"""Checks of what runs: whether our processes answer, and whether others have their addresses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from models_cache.errors import InferenceUnavailable
from service.checkup.finding import Finding, fine, problem, warning
from service.http_connections import HttpConnections
from service.own_address import own_host, own_url
from service.settings import Settings

_ASK_SECONDS = 2.0


def check_running(settings: Settings) -> Iterator[Finding]:
    """Ask api and inference; a service that is not running is no problem, half of one is."""
    host, api = own_host(settings.host), own_url(settings.host, settings.port)
    is_ours = _asked(api, "/healthz") == {"status": "ok"}
    yield _api(settings, host, is_ours=is_ours)
    if is_ours:
        yield from _ready(api)
        return
    url = settings.resolved_inference_url
    if _asked(url, "/healthz"):
        yield warning("inference", f"answers at {url}, and the api does not", "start the api")
    elif url.startswith("unix://") and Path(url.removeprefix("unix://")).exists():
        yield warning(
            "inference",
            f"nobody answers at {url}: it was killed, or starts just now",
            "nothing: the next start replaces it",
        )
    else:
        yield fine("inference", "not running")


def _ready(api: str) -> Iterator[Finding]:
    """Tell which process the api misses; it names them in the detail of its answer."""
    answer = _asked(api, "/readyz")
    missing = "" if answer.get("status") == "ready" else str(answer.get("detail", ""))
    for name in ("inference", "worker"):
        if name in missing:
            yield problem(name, "the api misses it", "the log of `graft serve` says why")
        else:
            yield fine(name, "works")


def _api(settings: Settings, host: str, *, is_ours: bool) -> Finding:
    address = f"{host}:{settings.port}"
    if is_ours:
        return fine("port", f"our api answers at {address}")
    if settings.port == 0:
        return fine("port", "the kernel chooses one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, settings.port))
        except OSError as error:
            return problem(
                "port",
                f"{address} cannot be had: {error.strerror}",
                "end what has it, or set GRAFT_PORT",
            )
    return fine("port", f"{address} is free")


def _asked(url: str, path: str) -> dict[str, Any]:
    """Return the JSON object that a process answers with; an empty one if it does not."""
    try:
        answer = asyncio.run(HttpConnections(url).request("GET", path, b"", _ASK_SECONDS))
        body = json.loads(answer.body)
    except (InferenceUnavailable, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
