"""Fixtures that more than one tier needs; imports nothing that a bare GPU image lacks.

One setting chooses the database of every test that has one:

    make test                                             SQLite
    make test-postgres                                    PostgreSQL: tests with a database, but
                                                          `_ONE_DATABASE_IS_ENOUGH` (`make soak`)
    GRAFT_TEST_DATABASE=postgresql pytest tests/acceptance/test_main_job.py

A test says where its database is in one of three ways, and is then right on both:

- it starts a service (`service` and `graft` of the acceptance tests, or `running.running`), whose
  database `RunningService.database_url` names;
- it asks for the fixture `database`, an empty database with all tables, or `database_url`, one
  without;
- it calls `databases.database_url(folder)`: the same folder, the same database.

One real server is started per process of pytest and stopped at its end; every folder has a
database of its own on it. Acceptance tests, and tests that ask for one of the fixtures, are marked
`database` by themselves; a test that calls the function says `pytest.mark.database`. SQL text for
one kind alone has no place in a test: read through `Database(url).read()` and `jobs.store.tables`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import databases

if TYPE_CHECKING:
    from jobs.store.database import Database

_REPOSITORY = Path(__file__).resolve().parents[1]
_ACCEPTANCE = Path(__file__).parent / "acceptance"

#: Tests of figures, files and foreign clients: what they ask of a database, others ask as well.
_ONE_DATABASE_IS_ENOUGH = frozenset(
    {
        "test_add_class",
        "test_arrays",
        "test_auto",
        "test_backup",
        "test_batch_predict",
        "test_cancel",
        "test_command_line",
        "test_compose",
        "test_data_doctor",
        "test_evaluate",
        "test_exports",
        "test_feedback",
        "test_inference_clients",
        "test_metrics",
        "test_mixed_load",
        "test_multilabel",
        "test_openai_client",
        "test_race",
        "test_reproduce",
        "test_run_files",
        "test_schemathesis",
        "test_serving_under_load",
        "test_shadow",
        "test_trails",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that have a database, as the docstring above says."""
    for item in items:
        asked_for = getattr(item, "fixturenames", ())
        if "database_url" in asked_for or _ACCEPTANCE in item.path.parents:
            item.add_marker("database")
        if item.path.stem in _ONE_DATABASE_IS_ENOUGH:
            item.add_marker("one_database")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty database of the chosen kind, without tables."""
    return databases.database_url(tmp_path)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database of the chosen kind, with every table."""
    from jobs.store.database import Database  # noqa: PLC0415 - not on a bare GPU image

    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


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
