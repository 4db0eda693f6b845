"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databases import postgresql_server


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server; `databases.new_database` makes databases on it."""
    with postgresql_server(tmp_path_factory.mktemp("postgresql")) as uri:
        yield uri
