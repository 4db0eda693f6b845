"""One real service per test file that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Graft
from tests.acceptance.running import RunningService, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[RunningService]:
    """A service that knows the real weights of `shared`."""
    folder = tmp_path_factory.mktemp("service") / "data"
    with running(folder, catalogue=shared / "weights" / "catalog.json") as started:
        yield started


@pytest.fixture(scope="module")
def graft(service: RunningService) -> Iterator[Graft]:
    """A client of that service."""
    with service.client() as client:
        yield client
