"""What a fork of the respawner runs: the api as `graft api` starts it, already imported."""

from __future__ import annotations

import uvicorn  # noqa: F401 - imported before the fork

import service.app  # noqa: F401 - imported before the fork
from service.cli import processes


def run() -> None:
    """Serve until SIGTERM; settings come from the environment."""
    processes.api()
