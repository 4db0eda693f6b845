"""What can happen to a worker and its jobs, for striking the fault points on the way.

Jobs are ingests whose children cost nothing (`cheap_child`); what they do is in their names.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.states import TERMINAL, JobEvent, JobState
from jobs.store import datasets, jobs
from jobs.store.database import Database
from jobs.store.jobs import Job
from tests.faults.ground import FaultPoints
from tests.waiting import until

_PATIENCE_SECONDS = 40.0


@dataclass
class WorkerGround:
    """What stories work with.

    Args:
        data_folder: State of the workers.
        database: Theirs.
        points: Theirs.
        sessions: Process numbers of the respawners of the two workers.
        turn: Counts jobs.
    """

    data_folder: Path
    database: Database
    points: FaultPoints
    sessions: tuple[int, int]
    turn: int = 0

    def accept(self, what: str) -> str:
        """Queue an ingest whose child does `what`."""
        self.turn += 1
        job_id, dataset_id = f"job_{what}_{self.turn}", f"ds_{self.turn}"
        with self.database.write("setup") as connection:
            datasets.add(connection, dataset_id, dataset_id, ("0" * 64, 1), project="default")
            new = jobs.NewJob(
                id=job_id, type="ingest", spec={}, dataset_id=dataset_id, project="default"
            )
            jobs.accept(connection, new)
        return job_id

    def look(self, job_id: str) -> Job:
        """Return a job."""
        with self.database.read() as connection:
            return jobs.get(connection, job_id, "default")

    def ended(self, job_id: str, status: JobState) -> None:
        """Wait for the end of a job, which must be this one."""
        until(
            lambda: self.look(job_id).status in TERMINAL,
            _PATIENCE_SECONDS,
            what=f"the end of {self.look(job_id)}",
        )
        assert self.look(job_id).status is status, self.look(job_id)

    def attempted(self, job_id: str) -> Job:
        """Wait until a child of a job has said something; return the job."""
        until(lambda: self.look(job_id).phase is not None, _PATIENCE_SECONDS, what=job_id)
        return self.look(job_id)

    def worker_pids(self) -> list[int]:
        """Return the process numbers of the workers themselves."""
        return [
            child.pid for session in self.sessions for child in psutil.Process(session).children()
        ]

    def holder(self, job: Job) -> int:
        """Return the process number of the worker that holds a job."""
        with self.database.read() as connection:
            row = connection.exec_driver_sql(
                "SELECT pid FROM workers WHERE id = ?", (job.worker_id,)
            ).one_or_none()
        return 0 if row is None else int(row[0])


Story = Callable[[WorkerGround], None]


def ends_well(ground: WorkerGround) -> None:
    ground.ended(ground.accept("quick"), JobState.SUCCEEDED)


def lasts(ground: WorkerGround) -> None:
    ground.ended(ground.accept("slow"), JobState.SUCCEEDED)


def fails(ground: WorkerGround) -> None:
    ground.ended(ground.accept("fail"), JobState.FAILED)


def crashes(ground: WorkerGround) -> None:
    job_id = ground.accept("crash")
    ground.ended(job_id, JobState.FAILED)
    assert ground.look(job_id).attempt >= 3


def is_cancelled(ground: WorkerGround) -> None:
    job_id = ground.accept("long")
    ground.attempted(job_id)
    with ground.database.write("setup") as connection:
        jobs.transition(connection, job_id, JobEvent.CANCEL, project="default")
    ground.ended(job_id, JobState.CANCELLED)


def cannot_be_started(ground: WorkerGround) -> None:
    """The disk gives an error when the first attempt begins; the job is put back."""
    ground.points.ask("spec.after_rename", "eio")
    ground.ended(ground.accept("quick"), JobState.SUCCEEDED)


def loses_its_worker(ground: WorkerGround) -> None:
    job_id = ground.accept("slow")
    pid = ground.holder(ground.attempted(job_id))
    if pid:
        os.kill(pid, signal.SIGKILL)
    ground.ended(job_id, JobState.SUCCEEDED)


def workers_restart(ground: WorkerGround) -> None:
    job_id = ground.accept("slow")
    ground.attempted(job_id)
    before = set(ground.worker_pids())
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    ground.ended(job_id, JobState.SUCCEEDED)
    until(lambda: not before & set(ground.worker_pids()), _PATIENCE_SECONDS)


_ROW_STAGES = ("before_tx", "in_tx", "after_commit")
_FILE_STAGES = ("before_fsync", "before_rename", "after_rename")


def _rows(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{stage}" for name in names for stage in _ROW_STAGES)


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{stage}" for name in names for stage in _FILE_STAGES)


#: Each story and the points that its workers pass.
STORIES: dict[Story, tuple[str, ...]] = {
    ends_well: (
        *_rows("claim", "progress", "publish", "forget"),
        *_files("spec", "figures"),
        "worker.before_tidying",
    ),
    lasts: _rows("heartbeat", "worker_beat"),
    fails: _rows("move"),
    crashes: _rows("fault", "fail"),
    is_cancelled: (),
    cannot_be_started: _rows("put_back"),
    loses_its_worker: _rows("recovery"),
    workers_restart: (
        *_rows("worker_register", "worker_remove"),
        "worker.before_drain",
        "migration.before",
        "migration.after",
    ),
}

#: What a worker writes about a job that it holds, and the story on whose way that is.
WRITES_UNDER_A_LEASE: dict[str, Story] = {
    "progress": lasts,
    "heartbeat": lasts,
    "publish": ends_well,
    "move": fails,
    "fault": crashes,
    "fail": crashes,
    "put_back": cannot_be_started,
}
