"""Backup and restore: everything comes back, on either database; a kill leaves nothing unsaid."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs import pointers
from jobs.backup.errors import (
    BackupDamaged,
    BackupMissing,
    BackupRunning,
    BackupTargetInvalid,
    BackupTooNew,
    CollectionBusy,
    NothingToBackUp,
    RestoreTargetUsed,
    RestoreUnfinished,
)
from jobs.backup.folder import BackupFolder, FileCopy, Snapshot
from jobs.backup.restore import Restored, restore_backup
from jobs.backup.take import Source, take_backup
from jobs.backup.unfinished import require_whole
from jobs.backup.verify import verify_backup
from jobs.collect_lock import removing_files
from jobs.states import JobState
from jobs.store import datasets, jobs
from jobs.store.database import Database
from jobs.store.jobs import NewJob
from models_cache import durable, faults
from models_cache.blobs import BlobStore
from models_cache.errors import InsufficientStorage
from tests.databases import KINDS, database_url
from tests.stored_service import StoredService, rows_of, stored_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StoredService]:
    made = stored_service(tmp_path / "data", f"sqlite:///{tmp_path / 'data' / 'graft.db'}")
    yield made
    made.database.close()


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm("", Path())


def back_up(service: StoredService, root: Path) -> Snapshot:
    return take_backup(source_of(service), root)


def source_of(service: StoredService) -> Source:
    return Source(service.database, service.folder, "test")


def bring_back(root: Path, folder: Path, database: Database) -> Restored:
    backups = BackupFolder.find(root)
    return restore_backup(backups, backups.snapshot(), folder, database)


def assert_restored(service: StoredService, folder: Path, database: Database) -> None:
    """Every row is as it was, but that no worker holds a job; every file is there and whole."""
    before, after = service.rows(), rows_of(database)
    for name in before.keys() - {"jobs", "job_events", "workers"}:
        assert after[name] == before[name], name
    assert after["workers"] == []
    with database.read() as connection:
        assert jobs.get(connection, "job_1", "default").status is JobState.SUCCEEDED
        assert jobs.get(connection, "job_3", "default").status is JobState.QUEUED
        assert jobs.get(connection, "job_3", "default").lease_token is None
        blobs = BlobStore(folder / "blobs")
        needed = {name for owner in pointers.owners(connection, blobs) for name in owner.sha256s}
    assert len(needed) == 12
    for sha256 in needed:
        blobs.verify(sha256)
    for name in ("runs/job_1/metrics.jsonl", "runs/job_1/1/log.txt", "weights/learned.json"):
        assert (folder / name).read_bytes() == (service.folder / name).read_bytes()
    assert not (folder / "runs" / "job_1" / "checkpoints").exists()
    assert not (folder / "runs" / "job_3").exists()
    require_whole(folder)


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_everything_comes_back_on_either_database(tmp_path: Path, source: str, target: str) -> None:
    data, folder = tmp_path / "data", tmp_path / "again"
    service = stored_service(data, database_url(data, source))
    made = back_up(service, tmp_path / "copy")
    assert (made.database, made.missing) == (source, {})
    database = Database(database_url(folder, target))
    restored = bring_back(tmp_path / "copy", folder, database)
    assert (restored.queued_again, restored.broken) == (["job_3"], {})
    assert_restored(service, folder, database)
    with database.write("test") as connection:  # numbers that the database gives go on
        new = jobs.accept(
            connection, NewJob(id="job_5", project="default", type="fine_tune", spec={})
        )
        assert new.number == 5
    database.close()
    service.database.close()


def test_a_second_backup_copies_only_what_is_new(service: StoredService, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    first = back_up(service, root)
    before = {path: path.stat().st_ino for path in (root / "blobs").glob("??/*")}
    service.add_dataset("ds_2", images=3)
    second = back_up(service, root)
    after = {path: path.stat().st_ino for path in (root / "blobs").glob("??/*")}
    assert {path: after[path] for path in before} == before
    # three images, archive, manifest, report; and the rows of one table
    assert len(after) - len(before) == 6 + 1
    folder = BackupFolder.find(root)
    assert folder.ids() == [first.id, second.id]
    for snapshot in (folder.snapshot(first.id), folder.snapshot()):
        verify_backup(folder, snapshot)
    assert {"ds_2"} == {
        row[0] for row in _lines(folder, second, "datasets")
    } - {row[0] for row in _lines(folder, first, "datasets")}  # fmt: skip


def _lines(folder: BackupFolder, snapshot: Snapshot, table: str) -> list[Any]:
    (copy,) = [copy for copy in snapshot.tables if copy.name == table]
    return [json.loads(line) for line in folder.blobs.read(copy.sha256).splitlines()]


def test_weights_are_copied_when_asked_for(service: StoredService, tmp_path: Path) -> None:
    without = back_up(service, tmp_path / "copy")
    with_them = take_backup(source_of(service), tmp_path / "copy", with_weights=True)
    added = {file.path for file in with_them.files} - {file.path for file in without.files}
    assert added == {"weights/some.pth"}


def test_one_changed_byte_is_found_and_nothing_is_written(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    made = back_up(service, root)
    folder = BackupFolder.find(root)
    for blob in [each for each in made.contents() if each.size_bytes][::4]:
        path = folder.blobs.local_path(blob.sha256)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BackupDamaged, match=blob.sha256):
            verify_backup(folder, made)
        database = Database(f"sqlite:///{tmp_path / 'again' / 'graft.db'}")
        with pytest.raises(BackupDamaged):
            bring_back(root, tmp_path / "again", database)
        assert not (tmp_path / "again").exists()
        path.write_bytes(whole)
    verify_backup(folder, made)
    (listing,) = (root / "snapshots").glob("*.json")
    listing.write_bytes(listing.read_bytes().replace(b'"rows":1', b'"rows":2', 1))
    with pytest.raises(BackupTargetInvalid, match="list of files"):
        folder.snapshot()


@pytest.mark.parametrize("path", ["../{}", "runs/../../{}", "{}", "blobs/{}", "/{}"])
def test_a_list_that_names_files_elsewhere_is_refused(
    service: StoredService, tmp_path: Path, path: str
) -> None:
    root = tmp_path / "copy"
    made = back_up(service, root)
    (listing,) = (root / "snapshots").glob("*.json")
    hostile = FileCopy(path=path.format("evil"), sha256=made.tables[0].sha256, size_bytes=1)
    value = asdict(replace(made, files=[*made.files, hostile]))
    sha256 = durable.sha256_of_bytes(durable.canonical_json(value))
    listing.write_bytes(durable.canonical_json({"sha256": sha256, "snapshot": value}))
    with pytest.raises(BackupTargetInvalid, match="outside"):
        BackupFolder.find(root).snapshot()


def test_a_later_backup_does_not_trust_a_truncated_file(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    made = back_up(service, root)
    sha256 = next(iter(made.blobs))
    BackupFolder.find(root).blobs.local_path(sha256).write_bytes(b"")
    verify_backup(BackupFolder.find(root), back_up(service, root))


def test_what_is_gone_is_named_and_its_data_set_rejected_after_a_restore(
    service: StoredService, tmp_path: Path
) -> None:
    root, folder = tmp_path / "copy", tmp_path / "again"
    gone, damaged = service.add_dataset("ds_2")[:2]
    service.blobs.local_path(gone).unlink()
    service.blobs.local_path(damaged).write_bytes(service.some_bytes())
    made = back_up(service, root)
    assert made.missing == {"images ds_2": [gone], "damaged files": [damaged]}
    database = Database(f"sqlite:///{folder / 'graft.db'}")
    assert bring_back(root, folder, database).broken == {"images ds_2": 2}
    with database.read() as connection:
        found = datasets.get(connection, "ds_2", "default")
        assert datasets.get(connection, "ds_1", "default").status == "ready"
    database.close()
    assert found.status == "rejected"
    assert found.problem is not None
    assert found.problem["code"] == "dataset-files-missing"


def test_a_folder_that_is_no_place_for_a_backup_is_refused(
    service: StoredService, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    inside = service.folder / "copy"
    for root in (tmp_path / "full", tmp_path / "file", inside, service.folder, tmp_path):
        with pytest.raises(BackupTargetInvalid):
            back_up(service, root)
    with pytest.raises(BackupMissing):
        BackupFolder.find(tmp_path / "full")
    empty = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(NothingToBackUp):
        take_backup(Source(empty, service.folder, "test"), tmp_path / "copy")
    empty.close()


def test_a_restore_writes_over_nothing(service: StoredService, tmp_path: Path) -> None:
    root, folder = tmp_path / "copy", tmp_path / "again"
    back_up(service, root)
    with pytest.raises(RestoreTargetUsed, match="data folder"):
        bring_back(root, service.folder, service.database)
    other = stored_service(tmp_path / "other", database_url(tmp_path, "postgresql"), seed=1)
    before = other.rows()
    with pytest.raises(RestoreTargetUsed, match="database"):
        bring_back(root, folder, other.database)
    assert other.rows() == before
    assert not folder.exists()
    other.database.close()


def test_a_backup_of_a_later_version_is_refused(service: StoredService, tmp_path: Path) -> None:
    made = back_up(service, tmp_path / "copy")
    later = Snapshot(**{**vars(made), "revision": "9999"})
    folder = BackupFolder.find(tmp_path / "copy")
    with pytest.raises(BackupTooNew, match="9999"):
        restore_backup(folder, later, tmp_path / "again", service.database)


def test_a_backup_of_an_older_version_is_migrated_forward(
    service: StoredService, tmp_path: Path
) -> None:
    """Rows are written into tables as they were, then migrated as an update would."""
    root, folder = tmp_path / "copy", tmp_path / "again"
    old = Database(f"sqlite:///{tmp_path / 'old' / 'graft.db'}")
    old.migrate("0002")
    with old.write("test") as connection:
        jobs.accept(
            connection,
            NewJob(id="job_1", project="default", type="fine_tune", spec={"a": [1, None]}),
        )
    made = take_backup(Source(old, tmp_path / "old", "test"), root)
    old.close()
    assert made.revision == "0002"
    assert "feedback" not in {table.name for table in made.tables}
    database = Database(database_url(folder, "postgresql"))
    bring_back(root, folder, database)
    assert database.is_migrated()
    with database.read() as connection:
        assert jobs.get(connection, "job_1", "default").spec == {"a": [1, None]}
    database.close()


def test_backups_take_turns_and_keep_collections_away(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    back_up(service, root)
    seen: list[bool] = []

    def look(_what: str, _done_bytes: int, _total_bytes: int) -> None:
        if not seen:
            seen.append(True)
            with pytest.raises(BackupRunning):
                back_up(service, root)
            with pytest.raises(CollectionBusy), removing_files(service.folder):
                pass

    take_backup(source_of(service), root, report=look)
    assert seen
    with removing_files(service.folder):
        pass


def child(what: str, plan: str, folder: Path, root: Path) -> int:
    """Run a backup or a restore of SQLite in a process of its own; return its status."""
    url = f"sqlite:///{folder / 'graft.db'}"
    command = [sys.executable, "-m", "tests.integration.backup_child", what, plan]
    return subprocess.run([*command, str(folder), url, str(root)], timeout=60).returncode


#: In the order in which a backup, and a restore, reach them.
BACKUP_POINTS = (
    "backup.begin.after_rename",
    "backup.after_rows",
    "copy.before_rename",
    "backup.snapshot.before_rename",
)
RESTORE_POINTS = (
    "restore.mark.after_rename",
    "copy.before_rename",
    "restore_rows.before_tx",
    "restore_rows.in_tx",
    "restore_rows.after_commit",
    "restore_end.before_tx",
    "restore_end.in_tx",
    "restore_end.after_commit",
)


def test_a_killed_backup_says_so_and_the_next_one_is_whole(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    for point in BACKUP_POINTS:
        assert child("backup", f"{point}=kill", service.folder, root) == -signal.SIGKILL, point
        folder = BackupFolder.find(root)
        with pytest.raises(BackupMissing, match="1 unfinished"):
            folder.snapshot()
    verify_backup(folder, back_up(service, root))
    assert folder.incomplete() == 0
    assert list(root.rglob(f"*{durable.TEMPORARY_SUFFIX}")) == []


def test_a_killed_backup_leaves_the_earlier_one_as_it_was(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    first = back_up(service, root)
    service.add_dataset("ds_2")
    plan = "backup.snapshot.before_rename=kill"
    assert child("backup", plan, service.folder, root) == -signal.SIGKILL
    folder = BackupFolder.find(root)
    assert (folder.ids(), folder.incomplete()) == ([first.id], 1)
    verify_backup(folder, folder.snapshot())


def test_a_killed_restore_says_so_and_goes_on_when_repeated(
    service: StoredService, tmp_path: Path
) -> None:
    root, folder = tmp_path / "copy", tmp_path / "again"
    back_up(service, root)
    for point in RESTORE_POINTS:
        assert child("restore", f"{point}=kill", folder, root) == -signal.SIGKILL, point
        with pytest.raises(RestoreUnfinished):
            require_whole(folder)
    database = Database(f"sqlite:///{folder / 'graft.db'}")
    bring_back(root, folder, database)
    assert_restored(service, folder, database)
    assert not list(folder.rglob(f"*{durable.TEMPORARY_SUFFIX}"))
    database.close()


def test_a_restore_does_not_go_on_in_another_database(
    service: StoredService, tmp_path: Path
) -> None:
    root, folder = tmp_path / "copy", tmp_path / "again"
    back_up(service, root)
    assert child("restore", f"{RESTORE_POINTS[0]}=kill", folder, root) == -signal.SIGKILL
    other = stored_service(tmp_path / "other", database_url(tmp_path / "other"), seed=1)
    other.add_dataset("ds_other")
    before = other.rows()
    with pytest.raises(RestoreTargetUsed, match="database"):
        bring_back(root, folder, other.database)
    assert other.rows() == before
    other.database.close()


def test_a_full_disk_leaves_the_earlier_backup_and_the_next_try_works(
    service: StoredService, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    first = back_up(service, root)
    service.add_dataset("ds_2")
    for number, point in enumerate(("blob.before_rename", "copy.before_fsync")):
        faults.arm(f"{point}=enospc", tmp_path / f"faults-{number}")
        with pytest.raises(InsufficientStorage):
            back_up(service, root)
        faults.arm("", tmp_path)
        verify_backup(BackupFolder.find(root), BackupFolder.find(root).snapshot(first.id))
        assert BackupFolder.find(root).ids() == [first.id]
    verify_backup(BackupFolder.find(root), back_up(service, root))
    shutil.rmtree(root)
