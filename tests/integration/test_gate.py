"""The gate before trainings, with a real database and memory that the test sets."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from jobs.admission import Need
from jobs.attempt import Attempt
from jobs.executors.protocol import AttemptSpec, Handle
from jobs.gate import Gate
from jobs.memory import Memory
from jobs.metrics_files import MetricsFiles
from jobs.specs import Machine
from jobs.states import JobEvent
from jobs.store import events, jobs, leases
from jobs.store.database import Database
from jobs.store.jobs import Job, Lease, NewJob
from jobs.store.tables import DEFAULT_PROJECT
from jobs.trail import Trail
from models_cache.disk_space import LowWater

_GIB = 1 << 30
PLENTY = Memory(64 * _GIB, 60 * _GIB)


class Room:
    """The memory of the machine, as the test wants it."""

    def __init__(self) -> None:
        self.host: Memory | None = PLENTY
        self.gpu: Memory | None = None

    def gate(
        self, database: Database, folder: Path, gpus: tuple[str, ...] = (), patience: float = 60.0
    ) -> Gate:
        machine = Machine(data_folder=folder, gpus=gpus)
        return Gate(
            database,
            machine,
            LowWater(folder, 0),
            patience,
            lambda: self.host,
            lambda _name: self.gpu,
        )


def queue(database: Database, job_id: str, **parameters: Any) -> Job:  # noqa: ANN401
    spec = {"backbone": "mobilenet_v2", "recipe": "finetune", "parameters": parameters}
    with database.write() as connection:
        new = NewJob(id=job_id, type="fine_tune", spec=spec, model="m", project=DEFAULT_PROJECT)
        jobs.accept(connection, new)
        return jobs.get(connection, job_id, DEFAULT_PROJECT)


def running(job: Job, folder: Path, need: Need) -> Attempt:
    handle = Handle(AttemptSpec("train", folder / "spec.json", folder), "t")
    figures = MetricsFiles(folder, 1)
    return Attempt(
        job, "train", 0, Lease(job.id, "t"), handle, folder, figures, Trail(job, {}), need
    )


def test_job_that_does_not_fit_beside_a_running_one_waits_and_says_why(
    database: Database, tmp_path: Path
) -> None:
    room = Room()
    gate = room.gate(database, tmp_path)
    first, second = queue(database, "job_1"), queue(database, "job_2")
    admitted = gate.ask(first, "train", 0, [])
    assert admitted is not None
    assert admitted.warning is None
    beside = [running(first, tmp_path, admitted.need)]
    room.host = Memory(64 * _GIB, _GIB)
    assert gate.ask(second, "train", 1, beside) is None
    assert gate.ask(second, "train", 1, beside) is None
    with database.read() as connection:
        assert jobs.get(connection, "job_2", DEFAULT_PROJECT).phase == "waiting-for-memory"
        told = events.page(connection, "job_2", 0, 100)
    assert [event.kind for event in told] == ["state", "phase", "log"]  # once
    assert "(1.0 of 64.0 GiB are free), by a rough estimate; trainings that run: 1" in str(
        told[-1].data["message"]
    )
    room.host = PLENTY
    gate._next_look = 0.0
    assert gate.ask(second, "train", 1, beside) is not None
    with database.write() as connection:
        claimed = leases.claim(connection, ("fine_tune",), "w", "t", timedelta(60), only=2)
    assert claimed is not None
    assert (claimed.id, claimed.phase) == ("job_2", None)


def test_job_that_never_fits_starts_alone_with_a_warning(
    database: Database, tmp_path: Path
) -> None:
    room = Room()
    gate = room.gate(database, tmp_path)
    first, second = queue(database, "job_1"), queue(database, "job_2")
    room.host = Memory(_GIB, _GIB)
    assert gate.ask(second, "train", 1, [running(first, tmp_path, Need(0, 0))]) is None
    gate._next_look = 0.0
    admitted = gate.ask(second, "train", 1, [])
    assert admitted is not None
    assert admitted.warning is not None
    assert "(1.0 of 1.0 GiB are free)" in admitted.warning


def test_memory_that_other_programs_hold_is_waited_for_and_not_for_ever(
    database: Database, tmp_path: Path
) -> None:
    room = Room()
    gate = room.gate(database, tmp_path, patience=0.0)
    job = queue(database, "job_1")
    room.host = Memory(64 * _GIB, _GIB)
    assert gate.ask(job, "train", 0, []) is None
    gate._next_look = 0.0
    admitted = gate.ask(job, "train", 0, [])
    assert admitted is not None
    assert admitted.warning is not None


def test_full_gpu_is_waited_for_although_the_host_has_room(
    database: Database, tmp_path: Path
) -> None:
    room = Room()
    gate = room.gate(database, tmp_path, gpus=("GPU-a",))
    first, second = queue(database, "job_1"), queue(database, "job_2")
    room.gpu = Memory(6 * _GIB, 6 * _GIB)
    admitted = gate.ask(first, "train", 0, [])
    assert admitted is not None
    assert admitted.need.device_bytes > 0
    assert gate.ask(second, "train", 1, [running(first, tmp_path, admitted.need)]) is None


def test_peaks_of_earlier_jobs_are_used(database: Database, tmp_path: Path) -> None:
    room = Room()
    gate = room.gate(database, tmp_path)
    queue(database, "job_1")
    with database.write() as connection:
        job = leases.claim(connection, ("fine_tune",), "w", "t", timedelta(60))
        assert job is not None
        changes = {"resources": {"peak_memory_bytes": _GIB}}
        jobs.transition(
            connection,
            job.id,
            JobEvent.SUCCEED,
            lease=Lease(job.id, "t"),
            changes=changes,
            project=DEFAULT_PROJECT,
        )
    admitted = gate.ask(queue(database, "job_2"), "train", 0, [])
    assert admitted is not None
    assert admitted.need == Need(int(1.1 * _GIB), 0, measured=True)
