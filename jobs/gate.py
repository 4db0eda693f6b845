"""Asked by the worker before each job: is there room on the disk, and memory for a training?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.admission import Need, NetworkSize, Verdict, judge, need_of
from jobs.attempt import Attempt
from jobs.gpus import gpu_memory
from jobs.memory import Memory, host_memory
from jobs.specs import Machine
from jobs.store import jobs, leases
from jobs.store.database import Database
from jobs.store.jobs import Job
from models_cache.catalogue import ACTIVATIONS_PX, DEFAULT, Catalogue
from models_cache.disk_space import LowWater
from models_cache.errors import DiskSpaceLow, GraftError

_SLOT = "train"
_LOOK_SECONDS = 0.5  # between two looks at the memory for the same waiting job
_EARLIER_JOBS = 100
_GIB = 1 << 30


@dataclass(frozen=True)
class Admitted:
    """Leave to start.

    Args:
        need: The memory the job will take.
        warning: What the user should know; None if all is well.
    """

    need: Need = Need(0, 0)  # noqa: RUF009 - frozen
    warning: str | None = None

    @property
    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """What the job's log says about it."""
        if self.warning is None:
            return []
        return [("warning", {"code": "memory-short", "message": self.warning})]


class Gate:
    """Lets trainings start whose memory is free; one waits at a time, the next in the queue.

    Args:
        database: Where earlier jobs, and what is said about waiting, stand.
        machine: Where trainings run.
        space: The mark below which nothing is started.
        patience_seconds: How long to wait for memory that other programs hold.
        host: Reads the host's memory.
        gpu: Reads the memory of the GPU of a name.
    """

    def __init__(
        self,
        database: Database,
        machine: Machine,
        space: LowWater,
        patience_seconds: float,
        host: Callable[[], Memory | None] = host_memory,
        gpu: Callable[[str], Memory | None] = gpu_memory,
    ) -> None:
        self._database = database
        self._machine = machine
        self._space = space
        self._told_of_space: set[str] = set()
        self._patience_seconds = patience_seconds
        self._host, self._gpu = host, gpu
        self._catalogue: Catalogue | None = None
        self._waiting: str | None = None
        self._waiting_since = 0.0
        self._next_look = 0.0

    def ask(self, job: Job, slot: str, place: int, attempts: Sequence[Attempt]) -> Admitted | None:
        """Return leave to start a job, or None while it has to wait.

        Any job waits for room on the disk, and a training for memory too.

        Args:
            job: The next of the queue.
            slot: The kind of slot that is free.
            place: The slot's place, which says the GPU.
            attempts: What this worker runs.
        """
        if not self._has_space(job):
            return None
        if slot != _SLOT:
            return Admitted()
        now = time.monotonic()
        if job.id == self._waiting and now < self._next_look:
            return None
        gpu = self._machine.gpu_at(place)
        need = self._need(job, on_gpu=gpu is not None)
        trainings = [attempt for attempt in attempts if attempt.slot == _SLOT]
        beside = [a.need for a in trainings if self._machine.gpu_at(a.place) == gpu]
        host, device = self._host(), None if gpu is None else self._gpu(gpu)
        verdicts = {
            judge(need.host_bytes, host, [attempt.need.host_bytes for attempt in trainings]),
            judge(need.device_bytes, device, [other.device_bytes for other in beside]),
        }
        if Verdict.WAIT in verdicts and (trainings or not self._is_tired(job, now)):
            self._wait(job, _sentence(need, host, device, len(trainings)), now)
            return None
        self._waiting = None
        fits = verdicts == {Verdict.START}
        return Admitted(need, None if fits else _sentence(need, host, device, len(trainings)))

    def _has_space(self, job: Job) -> bool:
        try:
            self._space.require()
        except DiskSpaceLow as low:
            if job.id not in self._told_of_space:
                self._told_of_space.add(job.id)
                with self._database.write("gate") as connection:
                    leases.wait_for(connection, job.id, leases.WAITING_FOR_SPACE, str(low))
            return False
        self._told_of_space.clear()
        return True

    def _need(self, job: Job, *, on_gpu: bool) -> Need:
        with self._database.read() as connection:
            earlier = jobs.succeeded(connection, job.type, _EARLIER_JOBS)
        pairs = [(other.spec, other.resources) for other in earlier]
        return need_of(job.spec, pairs, self._network(job.spec), on_gpu)

    def _network(self, spec: Mapping[str, Any]) -> NetworkSize | None:
        if self._catalogue is None:
            self._catalogue = Catalogue.load()
        return size_of(spec, self._catalogue)

    def _is_tired(self, job: Job, now: float) -> bool:
        return job.id == self._waiting and now - self._waiting_since > self._patience_seconds

    def _wait(self, job: Job, sentence: str, now: float) -> None:
        if job.id != self._waiting:
            self._waiting, self._waiting_since = job.id, now
            with self._database.write("gate") as connection:
                leases.wait_for(connection, job.id, leases.WAITING_FOR_MEMORY, sentence)
        self._next_look = now + _LOOK_SECONDS


def size_of(spec: Mapping[str, Any], catalogue: Catalogue) -> NetworkSize | None:
    """Return the size of a job's network, of a race the largest; None if it is unknown."""
    if "entrants" in spec:  # one after the other, and none learns
        return NetworkSize(max(int(entrant["parameters"]) for entrant in spec["entrants"]), 0)
    try:
        backbone = catalogue.backbone(str(spec.get("backbone")))
    except GraftError:  # the attempt says so better
        return None
    name = backbone.default if spec.get("weights") in (None, DEFAULT) else spec["weights"]
    crops = [info.preprocessing.crop_px for info in backbone.weights if info.name == name]
    scale = max(crops, default=ACTIVATIONS_PX) ** 2 / ACTIVATIONS_PX**2
    return NetworkSize(backbone.parameters, int(scale * backbone.activation_bytes))


def _sentence(need: Need, host: Memory | None, device: Memory | None, running: int) -> str:
    source = "as earlier jobs of its kind did" if need.measured else "by a rough estimate"
    parts = [f"it takes {need.host_bytes / _GIB:.1f} GiB of memory{_of(host)}"]
    if need.device_bytes:
        parts.append(f"{need.device_bytes / _GIB:.1f} GiB of the GPU{_of(device)}")
    return f"{' and '.join(parts)}, {source}; trainings that run: {running}"


def _of(memory: Memory | None) -> str:
    if memory is None:
        return ""
    free, total = memory.available_bytes / _GIB, memory.total_bytes / _GIB
    return f" ({free:.1f} of {total:.1f} GiB are free)"
