"""Rows move from SQLite to PostgreSQL and back, and the service goes on where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.backup.database_copy import copy_database
from jobs.backup.errors import DatabaseInUse, NothingToBackUp, RestoreTargetUsed
from jobs.store import jobs, workers
from jobs.store.database import Database
from jobs.store.jobs import NewJob
from tests.databases import KINDS, database_url
from tests.stored_service import PROJECT, rows_of, stored_service

SILENT = timedelta(seconds=45)


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_every_row_is_copied_to_either_kind(tmp_path: Path, source: str, target: str) -> None:
    service = stored_service(tmp_path / "a", database_url(tmp_path / "a", source))
    (tmp_path / "b").mkdir()
    other = Database(database_url(tmp_path / "b", target))
    with pytest.raises(DatabaseInUse):
        copy_database(service.database, other, SILENT)
    copied = copy_database(service.database, other, timedelta())
    assert rows_of(other) == service.rows()
    assert copied == {name: len(found) for name, found in service.rows().items()}
    assert copied["job_events"] > 9
    with other.write() as connection:  # numbers that the database gives go on
        new = NewJob(id="job_9", project=PROJECT, type="fine_tune", spec={})
        assert jobs.accept(connection, new).number == 5
    with pytest.raises(RestoreTargetUsed):
        copy_database(service.database, other, timedelta())
    service.database.close()
    other.close()


def test_a_database_without_tables_is_no_source(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path / name}") for name in "ab"]
    with pytest.raises(NothingToBackUp):
        copy_database(databases[0], databases[1], SILENT)
    for database in databases:
        database.close()


def test_the_command_copies_counts_and_hides_the_password(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = stored_service(folder, f"sqlite:///{folder / 'graft.db'}")
    with service.database.write() as connection:  # as they are after a stop
        workers.remove_all(connection)
    service.database.close()
    url = database_url(folder, "postgresql").replace("//postgres:@", "//postgres:canary@")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "service.cli.main", "database", "copy", url],
        env={**os.environ, "GRAFT_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "copied, and counted again" in done.stdout
    assert "canary" not in done.stdout + done.stderr
    other = Database(url)
    assert rows_of(other) == service.rows()
    other.close()
    service.database.close()
