"""Fixtures that more than one tier of tests needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import postgresql_server

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server; `databases.new_database` makes databases on it."""
    with postgresql_server(tmp_path_factory.mktemp("postgresql")) as uri:
        yield uri


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; missing is a skip, and a failure with `CI=true`."""
    folder = Path(os.environ.get("GRAFT_SHARED", _REPOSITORY.parent / "shared"))
    if not (folder / "data" / "hymenoptera.zip").is_file():
        reason = f"the real images and weights are not at {folder} (set GRAFT_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
