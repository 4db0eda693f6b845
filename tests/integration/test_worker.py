"""The worker's loop with real children that crash, hang and come back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.executors.local import LocalExecutor
from jobs.presence import Presence
from jobs.specs import Machine
from jobs.states import JobEvent, JobState
from jobs.store import datasets, events, jobs, leases, tables, workers
from jobs.store.database import Database, utc_now
from jobs.store.jobs import Job, NewJob
from jobs.store.tables import DEFAULT_PROJECT
from jobs.worker import Worker
from jobs.worker_limits import WorkerLimits
from models_cache.blobs import BlobStore
from tests.integration import poison
from tests.waiting import until

_LONGEST_SECONDS = 60.0
LIMITS = WorkerLimits(
    attempt_limit=4,
    stall_seconds=3.0,  # longer than a busy machine takes to start a fork server
    first_backoff_seconds=0.01,
    cancel_grace_seconds=0.2,
    sweep_seconds=0.2,
)


@pytest.fixture
def database(database: Database) -> Database:
    """With a data set to train on."""
    with database.write() as connection:
        datasets.add(connection, "ds_1", "d", ("0" * 64, 1), project=DEFAULT_PROJECT)
        datasets.set_ready(connection, "ds_1", {"manifest_sha256": "0" * 64, "digest": "0" * 64})
    return database


def accept(database: Database, seed: int) -> str:
    spec: dict[str, Any] = {
        "backbone": "b",
        "weights": None,
        "recipe": "scratch",
        "parameters": {},
        "seed": seed,
        "time_limit_seconds": None,
        "promote": True,
    }
    job_id = f"job_{seed}"
    new = NewJob(
        id=job_id,
        type="fine_tune",
        spec=spec,
        dataset_id="ds_1",
        model="m",
        project=DEFAULT_PROJECT,
    )
    with database.write() as connection:
        jobs.accept(connection, new)
    return job_id


def look(database: Database, job_id: str) -> Job:
    with database.read() as connection:
        return jobs.get(connection, job_id, DEFAULT_PROJECT)


def work(
    database: Database, folder: Path, done: Callable[[], bool], preload: tuple[str, ...] = ()
) -> None:
    """Run a worker in this thread, the main one, until `done`; fail if that takes too long."""
    deadline = time.monotonic() + _LONGEST_SECONDS

    def done_in_time() -> bool:
        return done() or time.monotonic() > deadline

    target = "tests.integration.poison:run"
    executor = LocalExecutor(dict(os.environ), target=target, preload=preload)
    presence = Presence(database, folder / "workers", "worker_test", "cpu")
    machine = Machine(data_folder=folder)
    Worker(database, BlobStore(folder / "blobs"), executor, machine, presence, LIMITS).run(
        done_in_time
    )
    assert done(), f"not within {_LONGEST_SECONDS} s"


def test_poison_job_stops_after_three_attempts_with_its_reason(
    database: Database, tmp_path: Path
) -> None:
    job_id = accept(database, poison.CRASH)
    work(database, tmp_path, lambda: look(database, job_id).status is JobState.FAILED)
    job = look(database, job_id)
    assert job.attempt == 3
    assert job.error is not None
    assert job.error["code"] == "attempts-exhausted"
    assert "SIGSEGV" in job.error["message"]
    with database.read() as connection:
        kinds = [event.kind for event in events.page(connection, job_id, 0, 100)]
        assert workers.count_alive(connection, timedelta(hours=1)) == 0
    assert kinds.count("warning") == 2


def test_an_idle_worker_finds_a_job_whose_time_comes_and_one_that_is_queued(
    database: Database, tmp_path: Path
) -> None:
    """Nothing is committed when a time comes; a worker that waits for commits alone misses it."""
    later = accept(database, poison.CRASH)
    with database.write() as connection:
        connection.execute(
            update(tables.jobs).values(not_before=utc_now() + timedelta(seconds=1.5))
        )
    soon = "job_of_another_process"

    def submit_when_idle() -> None:
        until(lambda: look(database, later).status is JobState.FAILED)
        new = NewJob(
            id=soon,
            type="fine_tune",
            spec=look(database, later).spec,
            dataset_id="ds_1",
            project=DEFAULT_PROJECT,
        )
        with database.write() as connection:
            jobs.accept(connection, new)

    other = threading.Thread(target=submit_when_idle)
    other.start()

    def both_ended() -> bool:
        return not other.is_alive() and look(database, soon).status is JobState.FAILED

    work(database, tmp_path, both_ended)
    other.join()


def test_attempts_that_get_further_are_not_counted_together(
    database: Database, tmp_path: Path
) -> None:
    job_id = accept(database, poison.CHECKPOINT_THEN_CRASH)
    work(database, tmp_path, lambda: look(database, job_id).status is JobState.FAILED)
    job = look(database, job_id)
    assert job.attempt == 5
    assert job.error is not None
    assert job.error["code"] == "diverged"


def test_job_whose_fork_server_dies_each_time_ends_too(database: Database, tmp_path: Path) -> None:
    job_id = accept(database, poison.CRASH)
    preload = ("tests.integration.dying_import",)
    work(database, tmp_path, lambda: look(database, job_id).status is JobState.FAILED, preload)
    job = look(database, job_id)
    assert job.error is not None
    assert job.error["code"] == "attempts-exhausted"
    assert job.attempt == LIMITS.attempt_limit + 1


def test_attempt_without_progress_is_restarted_as_stalled(
    database: Database, tmp_path: Path
) -> None:
    job_id = accept(database, poison.SILENT)
    work(database, tmp_path, lambda: look(database, job_id).attempt == 2)
    with database.read() as connection:
        warnings = [
            event.data["code"]
            for event in events.page(connection, job_id, 0, 100)
            if event.kind == "warning"
        ]
    assert warnings[0] == "stalled"


def test_jobs_of_a_dead_worker_are_queued_at_once_and_of_a_living_one_left_alone(
    database: Database, tmp_path: Path
) -> None:
    job_id = accept(database, poison.SILENT)
    dead = Presence(database, tmp_path / "workers", "worker_dead", "cpu")
    dead.begin()
    with database.write() as connection:
        leases.claim(connection, ("fine_tune",), "worker_dead", "t", timedelta(hours=1))
    other = Presence(database, tmp_path / "workers", "worker_other", "cpu")
    other.begin()
    assert other.recover_jobs(timedelta(hours=1)) == []
    assert dead._lock is not None
    dead._lock.close()  # what the kernel does when the process dies
    assert other.recover_jobs(timedelta(hours=1)) == [job_id]
    assert look(database, job_id).status is JobState.QUEUED
    assert other.recover_jobs(timedelta(hours=1)) == []
    other.end()


def test_cancel_while_the_child_hangs_ends_the_job_and_the_child(
    database: Database, tmp_path: Path
) -> None:
    job_id = accept(database, poison.SILENT)

    def cancel() -> None:
        until(lambda: look(database, job_id).phase == "train", 20.0)
        with database.write() as connection:
            jobs.transition(connection, job_id, JobEvent.CANCEL, project=DEFAULT_PROJECT)

    thread = threading.Thread(target=cancel)
    thread.start()
    work(database, tmp_path, lambda: look(database, job_id).status is JobState.CANCELLED)
    thread.join()
