"""Workers die, stop beyond their lease or meet a failing disk at every point: each job ends once.

Two real workers share a database; their children cost nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import psutil
import pytest

from jobs.states import JobState
from jobs.store.database import Database
from tests.faults import soak
from tests.faults.checker import violations
from tests.faults.final_state import read_final_state
from tests.faults.ground import FaultPoints, respawning, stopped_processes
from tests.faults.worker_process import LIMITS
from tests.faults.worker_stories import (
    STORIES,
    WRITES_UNDER_A_LEASE,
    Story,
    WorkerGround,
    ends_well,
    is_cancelled,
)
from tests.waiting import until

pytestmark = pytest.mark.slow

_OTHER_ACTIONS = ("pause", "enospc", "eio")
_IN_CI = 5  # of the points x other actions
_ZOMBIE_ROUNDS = 15 if soak.SOAK else 1
_PATIENT_LEASE_SECONDS = 3.0
_BEYOND_THE_LEASE_SECONDS = LIMITS.lease_seconds + 0.5


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[WorkerGround]:
    with _two_workers(tmp_path, LIMITS.lease_seconds) as ground:
        yield ground


@pytest.fixture
def patient_ground(tmp_path: Path) -> Iterator[WorkerGround]:
    """Leases that a busy machine does not let run out."""
    with _two_workers(tmp_path, _PATIENT_LEASE_SECONDS) as ground:
        yield ground


@contextmanager
def _two_workers(folder: Path, lease_seconds: float) -> Iterator[WorkerGround]:
    data_folder = folder / "data"
    data_folder.mkdir()
    database = Database(f"sqlite:///{data_folder / 'graft.db'}")
    database.migrate()
    arguments = (str(data_folder), "0", "0", str(lease_seconds))
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                respawning(
                    "tests.faults.worker_process:run",
                    *arguments,
                    environment={},
                    log_path=folder / f"{name}.log",
                )
            )
            for name in "ab"
        )
        points = FaultPoints(data_folder / "run" / "faults")
        yield WorkerGround(data_folder, database, points, (first.pid, second.pid))
    database.close()


def _strike(ground: WorkerGround, story: Story, point: str, action: str) -> None:
    ground.points.ask(point, action)
    let_go_on = _LettingGoOn(ground) if action == "pause" else None
    story(ground)
    if let_go_on is not None:
        let_go_on.done()
    until(lambda: ground.points.was_reached(point), 30.0, what=f"{point} in {story.__name__}")


def _kill_at_each(ground: WorkerGround, story: Story, points: tuple[str, ...]) -> None:
    """Have each point kill the worker that reaches it first; repeat until all were reached."""
    for point in points:
        ground.points.ask(point, "kill")
    for _ in points:
        story(ground)
        if all(map(ground.points.was_reached, points)):
            return
    missed = [point for point in points if not ground.points.was_reached(point)]
    until(lambda: all(map(ground.points.was_reached, missed)), 30.0, what=f"{missed}")


class _LettingGoOn:
    """Lets workers that stopped themselves go on when their lease is over."""

    def __init__(self, ground: WorkerGround) -> None:
        self.counted = 0
        self._sessions = ground.sessions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def done(self) -> None:
        """Let the last one go on."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set() or self._stopped():
            for pid in self._stopped():
                time.sleep(_BEYOND_THE_LEASE_SECONDS)
                os.kill(pid, signal.SIGCONT)
                self.counted += 1
            time.sleep(0.02)

    def _stopped(self) -> list[int]:
        return [pid for session in self._sessions for pid in stopped_processes(session)]


def _judge(ground: WorkerGround, below: list[psutil.Process]) -> None:
    final = read_final_state(ground.data_folder, below)
    # The children's files are made up, and temporary ones are swept after an hour.
    found = [v for v in violations([], final, swept=False) if not v.what.startswith("the file 000")]
    assert found == []
    with ground.database.read() as connection:
        assert _writes_of_zombies(connection) == []


def _writes_of_zombies(connection: object) -> list[str]:
    """Return log lines that name another attempt than the one that was running."""
    rows = connection.exec_driver_sql(  # type: ignore[attr-defined]
        "SELECT job_id, kind, data ->> 'status', data ->> 'attempt',"
        " coalesce(data ->> 'phase', data ->> 'message') FROM job_events ORDER BY job_id, seq"
    )
    found, attempt = [], 0
    for job_id, kind, status, number, said in rows:
        if kind == "state" and status == "running":
            attempt = number
        elif kind in ("phase", "log") and said != f"attempt-{attempt}":
            found.append(f"{job_id}: {said} while attempt {attempt} ran")
    return found


def test_every_job_ends_once_wherever_its_workers_are_struck(
    ground: WorkerGround, capsys: pytest.CaptureFixture[str]
) -> None:
    every = [(story, point) for story, points in STORIES.items() for point in points]
    for story, points in STORIES.items():
        _kill_at_each(ground, story, points)
    others = [(s, point, action) for (s, point), action in product(every, _OTHER_ACTIONS)]
    others = soak.sample(others, _IN_CI)
    for story, point, action in others:
        _strike(ground, story, point, action)
    ends_well(ground)
    is_cancelled(ground)
    _judge(ground, [p for s in ground.sessions for p in psutil.Process(s).children(recursive=True)
                    if p.pid not in ground.worker_pids()])  # fmt: skip
    with capsys.disabled():
        strikes = len(every) + len(others)
        sys.stdout.write(f"\n{strikes} strikes at workers, seed {soak.SEED}\n")


def test_a_job_longer_than_its_lease_keeps_its_worker(patient_ground: WorkerGround) -> None:
    job_id = patient_ground.accept("slower")
    patient_ground.ended(job_id, JobState.SUCCEEDED)
    assert patient_ground.look(job_id).attempt == 1


def test_a_wall_clock_that_jumps_ends_no_lease_and_keeps_no_job_waiting(
    patient_ground: WorkerGround,
) -> None:
    clock = patient_ground.data_folder / "clock"
    fast = clock.with_name(f"clock-{patient_ground.sessions[1]}")
    fast.write_text("3600")  # one worker's clock is an hour ahead of the other's
    job_id = patient_ground.accept("slow")
    patient_ground.ended(job_id, JobState.SUCCEEDED)
    assert patient_ground.look(job_id).attempt == 1
    fast.unlink()
    for offset_seconds in (3600.0, -3600.0, 10 * 365 * 86_400.0):
        job_id = patient_ground.accept("slow")
        patient_ground.attempted(job_id)
        clock.write_text(str(offset_seconds))
        patient_ground.ended(job_id, JobState.SUCCEEDED)
        assert patient_ground.look(job_id).attempt == 1
    job_id = patient_ground.accept("crash")  # waits a moment before each further attempt
    until(lambda: patient_ground.look(job_id).attempt == 1, 20.0)
    clock.write_text("-86400")
    patient_ground.ended(job_id, JobState.FAILED)


def test_a_worker_that_slept_through_its_lease_writes_nothing(
    ground: WorkerGround, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = 0
    for _ in range(_ZOMBIE_ROUNDS):
        for write, story in WRITES_UNDER_A_LEASE.items():
            let_go_on = _LettingGoOn(ground)
            ground.points.ask(f"{write}.before_tx", "pause")
            story(ground)
            let_go_on.done()
            assert ground.points.was_reached(f"{write}.before_tx")
            tries += let_go_on.counted
    ends_well(ground)
    _judge(ground, [])
    assert tries >= _ZOMBIE_ROUNDS * len(WRITES_UNDER_A_LEASE)
    if soak.SOAK:
        soak.write_figure("zombie-writes", f"0 of {tries}", "0 of >= 100", ok=tries >= 100)
    with capsys.disabled():
        sys.stdout.write(f"\n{tries} workers that slept too long wrote nothing\n")
