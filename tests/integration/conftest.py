"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training_jobs import TrainingChildren, write_catalogue


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of one small network with random weights."""
    return write_catalogue(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def children() -> Iterator[TrainingChildren]:
    """Runs attempts in real children of a warm server, which end with the tests of a file."""
    children = TrainingChildren()
    yield children
    children.close()
