"""Garbage goes and nothing else does, while others write, and whatever kills the collection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from jobs import pointers
from jobs.backup.errors import CollectionBlind, CollectionBusy, CollectionRefused
from jobs.collect_lock import keeping_files
from jobs.collector import Collector
from jobs.garbage import (
    JOB_DELETED,
    JOB_LONG_ENDED,
    LEFT,
    UNPOINTED,
    UPLOAD_LEFT,
    collect,
    find_garbage,
)
from jobs.states import JobEvent
from jobs.store import datasets, events, jobs
from jobs.store.database import Database
from jobs.worker_limits import Retention
from models_cache import faults
from models_cache.blobs import BlobStore
from tests.databases import KINDS, database_url
from tests.stored_service import StoredService, stored_service
from tests.waiting import until

KEPT = Retention()
LONG_AGO = time.time() - 400 * 86_400
COLLECTIONS = int(os.environ.get("GRAFT_TEST_COLLECTIONS", "60"))


@pytest.fixture(params=KINDS)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoredService]:
    """A service whose files are all old, without a job that runs."""
    folder = tmp_path / "data"
    made = stored_service(folder, database_url(folder, request.param))
    end_open_jobs(made)
    age(made)
    yield made
    faults.arm("", Path())
    made.database.close()


def end_open_jobs(service: StoredService) -> None:
    with service.database.write("test") as connection:
        jobs.transition(connection, "job_3", JobEvent.LOSE, project="default")
        for job_id in ("job_3", "job_4"):
            jobs.transition(connection, job_id, JobEvent.CANCEL, project="default")


def age(service: StoredService) -> None:
    for path in service.folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def reasons(service: StoredService, kept: Retention = KEPT) -> dict[str, str]:
    garbage = find_garbage(service.database, service.folder, kept)
    return {item.path.name: item.reason for item in garbage.items()}


def assert_nothing_is_lost(service: StoredService) -> None:
    present = pointers.present_blobs(service.blobs)
    with service.database.read() as connection:
        assert pointers.missing_files(connection, service.blobs, present) == {}


def test_what_rows_point_to_stays(service: StoredService) -> None:
    assert reasons(service) == {}
    _, freed_bytes = collect(service.database, service.folder, KEPT)
    assert freed_bytes == 0
    assert_nothing_is_lost(service)


def test_each_kind_of_garbage_is_told_with_its_reason_and_goes(service: StoredService) -> None:
    unpointed = service.blobs.put_bytes(service.some_bytes()).sha256
    images = service.add_dataset("ds_2", images=2)
    with service.database.write("test") as connection:
        datasets.remove(connection, "ds_2")
    left = service.blobs.local_path(unpointed).with_name(".some.tmp")
    left.write_bytes(b"x")
    corrupt = service.blobs.local_path(unpointed).with_name(f"{images[0]}.corrupt")
    corrupt.write_bytes(b"x")
    (service.folder / "runs" / "job_9").mkdir()
    (service.folder / "uploads" / "parts").mkdir(parents=True)
    (service.folder / "uploads" / "one").write_bytes(b"x")
    age(service)
    service.add_job("job_5")
    service.end_job("job_5", {}, ago=timedelta(days=31))
    young = service.blobs.put_bytes(service.some_bytes()).sha256
    before = reasons(service)
    assert {before[name] for name in images} == {UNPOINTED}
    assert list(before.values()).count(UNPOINTED) == 1 + 2 + 3  # archive, manifest, report
    assert {name: why for name, why in before.items() if why != UNPOINTED} == {
        ".some.tmp": LEFT,
        corrupt.name: LEFT,
        "job_9": JOB_DELETED,
        "job_5": JOB_LONG_ENDED,
        "parts": UPLOAD_LEFT,
        "one": UPLOAD_LEFT,
    }
    garbage, freed_bytes = collect(service.database, service.folder, KEPT)
    assert freed_bytes == sum(item.size_bytes for item in garbage.items())
    assert reasons(service) == {}
    assert service.blobs.local_path(young).exists()
    assert not any(item.path.exists() for item in garbage.items())
    assert (service.folder / "runs" / "job_1").is_dir()
    assert_nothing_is_lost(service)


def test_figures_of_jobs_that_ended_long_ago_go_and_their_history_stays(
    service: StoredService,
) -> None:
    service.add_job("job_5")
    service.end_job("job_5", {}, ago=timedelta(days=91))
    assert find_garbage(service.database, service.folder, KEPT).figures == 1
    collect(service.database, service.folder, KEPT)
    with service.database.read() as connection:
        kinds = [event.kind for event in events.page(connection, "job_5", 0, 10)]
        young = [event.kind for event in events.page(connection, "job_1", 0, 10)]
        last = jobs.get(connection, "job_5", "default").event_seq
        assert events.page(connection, "job_5", last - 1, 10)  # a listener finds the end
    assert kinds == ["state", "state", "state"]
    assert "metrics" in young


def test_what_a_job_stored_stays_until_the_job_ends(service: StoredService) -> None:
    """A report is put in the middle of a training, and gets its row at its end, days later."""
    service.add_job("job_5")
    lease = service.run_job("job_5")
    report = service.blobs.put_bytes(service.some_bytes()).sha256
    with service.database.write("test") as connection:
        connection.exec_driver_sql(
            "UPDATE jobs SET started_at = '2020-01-01T00:00:00.000000+00:00' WHERE id = 'job_5'"
        )
    in_2021 = 1.61e9
    os.utime(service.blobs.local_path(report), (in_2021, in_2021))
    assert report not in reasons(service)
    with service.database.write("test") as connection:
        jobs.transition(connection, "job_5", JobEvent.SUCCEED, lease=lease, project="default")
    assert reasons(service)[report] == UNPOINTED


def test_what_is_put_again_stays(service: StoredService) -> None:
    data = service.some_bytes()
    blob = service.blobs.put_bytes(data)
    path = service.blobs.local_path(blob.sha256)
    for put in (
        lambda: service.blobs.put_bytes(data),
        lambda: service.blobs.put_file(_written(service.folder / "again", data)),
        lambda: service.blobs.put_files({blob.sha256: _written(service.folder / "again", data)}),
    ):
        os.utime(path, (LONG_AGO, LONG_AGO))
        garbage = find_garbage(service.database, service.folder, KEPT)
        assert [file.sha256 for file in garbage.blobs] == [blob.sha256]
        put()
        assert service.blobs.collect(garbage.blobs, garbage.put_before) == 0
        assert path.exists()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_rows_of_another_database_are_noticed(service: StoredService, tmp_path: Path) -> None:
    other = stored_service(tmp_path / "other", f"sqlite:///{tmp_path / 'other' / 'graft.db'}", 7)
    empty = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    empty.migrate()
    for database in (other.database, empty):
        with pytest.raises(CollectionRefused, match="GRAFT_DATABASE_URL"):
            collect(database, service.folder, KEPT)
    assert_nothing_is_lost(service)
    collect(empty, service.folder, KEPT, force=True)
    assert pointers.present_blobs(service.blobs) == {}
    for database in (other.database, empty):
        database.close()


@pytest.mark.parametrize("damaged", [False, True])
def test_images_of_a_lost_list_are_no_garbage(service: StoredService, damaged: bool) -> None:
    images = service.add_dataset("ds_2", images=2)
    with service.database.read() as connection:
        manifest = str(datasets.get(connection, "ds_2", "default").manifest_sha256)
    path = service.blobs.local_path(manifest)
    path.write_bytes(b"x") if damaged else path.unlink()
    age(service)
    for _ in range(2):
        with pytest.raises(CollectionBlind, match=manifest):
            collect(service.database, service.folder, KEPT)
    assert all(service.blobs.local_path(image).exists() for image in images)
    assert list(service.blobs.local_path(manifest).parent.glob("*.corrupt")) != [] or not damaged
    with service.database.write("test") as connection:
        datasets.remove(connection, "ds_2")
    collect(service.database, service.folder, KEPT)
    assert not any(service.blobs.local_path(image).exists() for image in images)


def test_a_backup_holds_what_it_copies(service: StoredService) -> None:
    with keeping_files(service.folder), pytest.raises(CollectionBusy):
        collect(service.database, service.folder, KEPT)


#: In the order in which a collection reaches them.
POINTS = (
    "collect.before_unlink",
    "collect.after_unlink",
    "collect.before_folder",
    "collect.after_folder",
    "collect_figures.before_tx",
    "collect_figures.in_tx",
    "collect_figures.after_commit",
)


def test_a_killed_collection_loses_nothing_and_the_next_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = stored_service(folder, f"sqlite:///{folder / 'graft.db'}")
    end_open_jobs(service)
    for _ in range(len(POINTS)):
        service.blobs.put_bytes(service.some_bytes())
    for number in range(len(POINTS)):
        (folder / "runs" / f"job_9{number}").mkdir()
    service.add_job("job_5")
    service.end_job("job_5", {}, ago=timedelta(days=100))
    age(service)
    program = (
        "import sys; from pathlib import Path; from models_cache import faults;"
        "from jobs.garbage import collect; from jobs.store.database import Database;"
        "from jobs.worker_limits import Retention;"
        "faults.arm(sys.argv[1] + '=kill', Path(sys.argv[2]) / 'faults');"
        "collect(Database(sys.argv[3]), Path(sys.argv[2]), Retention())"
    )
    for point in POINTS:
        command = [sys.executable, "-c", program, point, str(folder), str(service.database.url)]
        assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL, point
        assert_nothing_is_lost(service)
    collect(service.database, folder, KEPT)
    assert reasons(service) == {}
    assert find_garbage(service.database, folder, KEPT).figures == 0
    assert_nothing_is_lost(service)
    service.database.close()


def test_collections_race_writers_and_no_file_that_a_row_points_to_is_lost(
    service: StoredService,
) -> None:
    """Writers put again what lies there as old garbage, and then point a row to it."""
    kept = Retention(grace_seconds=60.0)
    lost: list[str] = []
    put_again = threading.Barrier(3)
    published = [0, 0]
    ended = threading.Event()

    def write(number: int) -> None:
        put_again.wait()
        for turn in range(10**6):
            if ended.is_set():
                return
            data = f"{number} {turn % 3}".encode() * 50
            sha256 = BlobStore(service.folder / "blobs").put_bytes(data).sha256
            dataset_id = f"ds_{number}_{turn}"
            with service.database.write("test") as connection:
                archive = (sha256, len(data))
                datasets.add(connection, dataset_id, dataset_id, archive, project="default")
            path = service.blobs.local_path(sha256)
            if not path.exists():
                lost.append(sha256)
                continue
            with service.database.write("test") as connection:
                datasets.remove(connection, dataset_id)
            os.utime(path, (LONG_AGO, LONG_AGO))
            published[number] += 1

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    put_again.wait()
    removed = 0
    for _ in range(COLLECTIONS):
        removed += collect(service.database, service.folder, kept)[1] > 0
    ended.set()
    for writer in writers:
        writer.join()
    assert lost == []
    assert removed > COLLECTIONS / 10
    assert min(published) > COLLECTIONS / 10
    assert_nothing_is_lost(service)


def test_the_worker_collects_once_in_a_while(service: StoredService) -> None:
    garbage = service.blobs.put_bytes(service.some_bytes()).sha256
    age(service)
    collector = Collector(service.database, service.folder, KEPT, interval_seconds=0.2)
    collector.start()
    until(lambda: not service.blobs.local_path(garbage).exists())
    collector.stop()
    assert_nothing_is_lost(service)


def test_the_first_collection_is_an_interval_after_the_first_start(
    service: StoredService,
) -> None:
    garbage = service.blobs.put_bytes(service.some_bytes()).sha256
    age(service)
    for interval_seconds in (0.0, 3600.0):
        collector = Collector(service.database, service.folder, KEPT, interval_seconds)
        collector.start()
        collector.stop()
    assert service.blobs.local_path(garbage).exists()
