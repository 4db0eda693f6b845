"""`graft doctor`: each problem is made real, found, and told with what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from jobs.store import tables
from jobs.store.database import Database, utc_now
from service.checkup.database import check_database
from service.checkup.finding import Check, Finding, Severity
from service.checkup.folder import check_folder
from service.checkup.running import check_running
from service.checkup.weights import check_weights
from service.settings import Settings
from tests.databases import database_url
from tests.stored_service import StoredService, stored_service

LONG_AGO = 10**9


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StoredService]:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    made = stored_service(folder, f"sqlite:///{folder / 'graft.db'}")
    yield made
    made.database.close()


def found(check: Check, name: str, **settings: object) -> Finding:
    """Return the worst of what a check found under a name."""
    findings = [f for f in check(Settings.model_validate(settings)) if f.check == name]
    order = list(Severity)
    worst = max(findings, key=lambda finding: order.index(finding.severity))
    assert (worst.severity is Severity.OK) == (worst.advice == "")
    return worst


def severities(check: Check, **settings: object) -> set[Severity]:
    return {finding.severity for finding in check(Settings.model_validate(settings))}


def test_a_service_as_it_should_be_has_no_findings(service: StoredService) -> None:
    assert severities(check_folder, data_dir=service.folder) == {Severity.OK}
    assert severities(check_database, data_dir=service.folder) == {Severity.OK}


def test_no_folder_yet_is_told(tmp_path: Path) -> None:
    assert found(check_folder, "data-folder", data_dir=tmp_path / "x").severity is Severity.WARNING
    assert found(check_database, "database", data_dir=tmp_path / "x").severity is Severity.OK


@pytest.mark.parametrize(
    ("mode", "severity"),
    [
        (0o700, Severity.OK),
        (0o750, Severity.WARNING),
        (0o755, Severity.PROBLEM),
        (0o702, Severity.PROBLEM),
    ],
)
def test_a_folder_that_others_may_use_is_found(
    service: StoredService, mode: int, severity: Severity
) -> None:
    service.folder.chmod(mode)
    finding = found(check_folder, "permissions", data_dir=service.folder)
    assert finding.severity is severity
    assert finding.advice in ("", f"chmod go-rwx {service.folder}")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
    if done.returncode != 0:
        pytest.skip("file systems cannot be mounted by this user")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=8m,nr_inodes=64,mode=700"):
        space = found(check_folder, "disk-space", data_dir=tmp_path)
        inodes = found(check_folder, "inodes", data_dir=tmp_path)
    assert (space.severity, "graft gc" in space.advice) == (Severity.PROBLEM, True)
    assert inodes.severity is Severity.WARNING


def test_a_full_and_a_read_only_folder_are_found(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=64k,mode=700"):
        (tmp_path / "all").write_bytes(bytes(64 << 10))
        assert found(check_folder, "writing", data_dir=tmp_path).severity is Severity.PROBLEM
        (tmp_path / "all").unlink()
        assert found(check_folder, "writing", data_dir=tmp_path).severity is Severity.OK
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        finding = found(check_folder, "writing", data_dir=tmp_path)
        assert (finding.severity, "Read-only" in finding.found) == (Severity.PROBLEM, True)


def test_folders_on_two_file_systems_are_found(service: StoredService) -> None:
    (service.folder / "uploads").mkdir()
    with mounted(service.folder / "uploads", "size=1m"):
        finding = found(check_folder, "one-file-system", data_dir=service.folder)
    assert (finding.severity, "uploads" in finding.found) == (Severity.PROBLEM, True)


def test_what_was_left_in_the_folder_is_found(service: StoredService) -> None:
    blob = service.blobs.put_bytes(service.some_bytes()).sha256
    path = service.blobs.local_path(blob)
    left = path.with_name(".left.tmp")
    left.write_bytes(b"")
    os.utime(left, (LONG_AGO, LONG_AGO))
    leftovers = found(check_folder, "leftovers", data_dir=service.folder)
    assert (leftovers.severity, leftovers.found[0]) == (Severity.WARNING, "1")
    path.rename(path.with_name(f"{blob}.corrupt"))
    damaged = found(check_folder, "damaged-files", data_dir=service.folder)
    assert damaged.severity is Severity.PROBLEM
    (service.folder / "restore-unfinished.json").write_text('"x"')
    assert found(check_folder, "restore", data_dir=service.folder).severity is Severity.PROBLEM


def test_tables_of_other_versions_are_found(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'graft.db'}")
    database.migrate("0002")
    older = found(check_database, "tables", data_dir=tmp_path)
    assert (older.severity, "graft backup" in older.advice) == (Severity.WARNING, True)
    database.migrate()
    assert found(check_database, "tables", data_dir=tmp_path).severity is Severity.OK
    with database.write("test") as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert found(check_database, "tables", data_dir=tmp_path).severity is Severity.PROBLEM
    database.close()


def test_a_damaged_database_and_one_that_does_not_answer_are_found(tmp_path: Path) -> None:
    (tmp_path / "graft.db").write_bytes(b"no database at all" * 500)
    assert found(check_database, "database", data_dir=tmp_path).severity is Severity.PROBLEM
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/graft"
    away = found(check_database, "database", data_dir=tmp_path, database_url=url)
    assert away.severity is Severity.PROBLEM
    assert "secret" not in away.found + away.advice


def test_rows_without_files_and_rows_of_tomorrow_are_found(service: StoredService) -> None:
    lost = service.add_dataset("ds_2")[0]
    service.blobs.local_path(lost).unlink()
    files = found(check_database, "files", data_dir=service.folder)
    assert (files.severity, "ds_2" in files.found) == (Severity.PROBLEM, True)
    with service.database.write("test") as connection:
        tomorrow = utc_now() + timedelta(days=1)
        connection.execute(update(tables.datasets).values(created_at=tomorrow))
    assert found(check_database, "clock", data_dir=service.folder).severity is Severity.PROBLEM


def test_settings_of_postgresql_that_lose_rows_are_found(tmp_path: Path) -> None:
    url = database_url(tmp_path, "postgresql")
    database = Database(url)
    database.migrate()
    settings = {"data_dir": tmp_path, "database_url": url}
    assert severities(check_database, **settings) <= {Severity.OK, Severity.PROBLEM}
    assert found(check_database, "database-clock", **settings).severity is Severity.OK
    with database.write("test") as connection:
        name = database.url.database
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    database.close()
    off = found(check_database, "database-settings", **settings)
    assert (off.severity, "synchronous_commit" in off.found) == (Severity.PROBLEM, True)


def test_a_port_that_another_program_has_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(0)
        taken = found(check_running, "port", data_dir=tmp_path, port=port)
    assert (taken.severity, "GRAFT_PORT" in taken.advice) == (Severity.PROBLEM, True)
    assert found(check_running, "port", data_dir=tmp_path, port=port).severity is Severity.OK


def test_a_socket_that_nobody_listens_at_is_found(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "run" / "inference.sock"))
    assert found(check_running, "inference", data_dir=tmp_path).severity is Severity.WARNING


def test_weights_that_changed_and_sources_that_are_not_there_are_found(
    tmp_path: Path, catalogue: Path
) -> None:
    settings = {"data_dir": tmp_path, "offline": True, "weights_catalog": str(catalogue)}
    assert severities(check_weights, **settings) == {Severity.OK}
    file = json.loads(catalogue.read_text())["weights"][0]["file"]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / file).write_bytes(b"changed")
    changed = found(check_weights, "weights", **settings)
    assert (changed.severity, file in changed.found) == (Severity.PROBLEM, True)
    nowhere = found(check_weights, "weights-sources", **settings, weights_sources="/nowhere")
    assert nowhere.severity is Severity.PROBLEM
    none = found(check_weights, "weights-sources", data_dir=tmp_path / "x", offline=True)
    assert none.severity is Severity.PROBLEM
    missing = settings | {"weights_catalog": str(tmp_path / "missing.json")}
    assert found(check_weights, "weights-catalogue", **missing).severity is Severity.PROBLEM


def test_the_command_prints_json_and_its_status_says_whether_there_is_a_problem(
    service: StoredService,
) -> None:
    service.folder.chmod(0o777)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    environment = {**clean, "GRAFT_DATA_DIR": str(service.folder), "GRAFT_OFFLINE": "1"}
    environment["GRAFT_DEVICE"] = "cuda:77"
    limited = ["bash", "-c", 'ulimit -n 200; exec "$@"', "bash"]
    command = [sys.executable, "-m", "service.cli.main", "doctor", "--json"]
    done = subprocess.run(
        [*limited, *command], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1, done.stderr
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings["permissions"]["severity"] == "problem"
    assert findings["open-files"]["severity"] == "problem"
    assert findings["torch"]["severity"] == "ok"
    assert findings["device"]["severity"] == "problem"
    assert "cuda:77" in findings["device"]["found"]
