"""Claims jobs, runs each attempt in a child, writes down what the child says, publishes.

One thread and no hidden state: everything a worker knows about an attempt is in `Attempt`, and
everything that must survive it is in the database or on disk. Whatever kills the worker, another
one finds its jobs through `presence` and goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from jobs import lifecycle, publish
from jobs.admission import Need
from jobs.attempt import Attempt
from jobs.away import AWAY
from jobs.errors import AttemptDied, AttemptsExhausted, AttemptStalled, LeaseLost
from jobs.executors.protocol import AttemptSpec, Executor, Exited, Lost
from jobs.gate import Gate
from jobs.housekeeping import bound_caches, forget_rows
from jobs.metrics_files import MetricsFiles
from jobs.presence import Presence
from jobs.progress import FILE_NAME as PROGRESS_FILE
from jobs.progress import read_progress
from jobs.slots import CHILD_KINDS, SLOT_KINDS
from jobs.specs import Machine, remove_scratch, write_spec
from jobs.states import TERMINAL, JobEvent, JobState
from jobs.store import datasets, events, jobs, leases
from jobs.store.database import Database, utc_now
from jobs.store.jobs import Job, Lease
from jobs.store.last_commit import Commit
from jobs.trail import Trail
from jobs.worker_limits import WorkerLimits
from models_cache import faults
from models_cache.blobs import BlobStore
from models_cache.disk_space import LowWater
from models_cache.errors import GraftError, InsufficientStorage, to_wire

log = logging.getLogger(__name__)

#: Exit status of a child that was asked to stop and left a checkpoint.
STOPPED_ON_REQUEST = 75
_AWAY_SECONDS = 1.0
_START_AGAIN_AFTER = timedelta(seconds=5)
_AGAIN_AFTER_LOSS = timedelta(seconds=1)
#: An idle worker looks for jobs when something was committed, and after so long for those whose
#: time has come, or that memory has become free for.
_LOOK_SECONDS = 1.0


class Worker:
    """The loop.

    Args:
        database: Where jobs are.
        blobs: Where children put files.
        executor: Where attempts run.
        machine: What attempts are told of this machine.
        presence: This worker's sign of life.
        limits: How long and how often.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        executor: Executor,
        machine: Machine,
        presence: Presence,
        limits: WorkerLimits,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._executor = executor
        self._machine = machine
        self._presence = presence
        self._limits = limits
        space = LowWater(machine.data_folder, limits.low_water_bytes)
        self._gate = Gate(database, machine, space, limits.memory_patience_seconds)
        self._attempts: list[Attempt] = []
        self._next_beat = 0.0
        self._next_sweep = 0.0
        self._next_look = 0.0
        self._idle_as_of: Commit = None  # the commit at which nothing could be started

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until `should_stop`; then let children write a checkpoint and queue their jobs."""
        self._presence.begin()
        while not should_stop():
            idle_seconds = self._limits.tick_seconds
            try:
                busy = self._tick()
            except AWAY as error:  # children go on within their lease
                log.warning("the database or the disk is away: %s", error)
                busy, idle_seconds = False, _AWAY_SECONDS
            self._stop_overdue()
            if not busy:
                self._executor.wait(idle_seconds)
        self._drain()
        self._presence.end()

    def _tick(self) -> bool:
        """Do everything that is due once; True if an attempt ended or began."""
        now = time.monotonic()
        if now >= self._next_beat:
            self._presence.beat()
            self._next_beat = now + self._limits.heartbeat_seconds
        if now >= self._next_sweep:
            self._sweep()
            self._next_sweep = now + self._limits.sweep_seconds
        ended = [self._attend_alone(attempt) for attempt in list(self._attempts)]
        return self._fill_slots(now) or any(ended)

    def _sweep(self) -> None:
        """Queue again what dead workers held; our own leases are renewed first.

        After a suspended machine wakes up, every lease looks over, ours included.
        """
        for attempt in list(self._attempts):
            try:
                self._renew(attempt)
            except LeaseLost:
                self._abandon(attempt)
        self._database.restore_ballast()
        silent_after = timedelta(seconds=self._limits.lease_seconds)
        for job_id in self._presence.recover_jobs(silent_after):
            log.warning("job %s was held by a worker that is gone; queued again", job_id)

    # -- beginning ---------------------------------------------------------------------------

    def _fill_slots(self, now: float) -> bool:
        """Start what can be started, unless nothing has changed since nothing could."""
        as_of = self._database.last_commit()
        if as_of is not None and as_of == self._idle_as_of and now < self._next_look:
            return False
        started = [self._fill(slot) for slot in SLOT_KINDS]
        self._idle_as_of = None if any(started) else as_of
        self._next_look = now + _LOOK_SECONDS
        return any(started)

    def _fill(self, slot: str) -> bool:
        """Start the next job of a slot's kinds if the slot is free."""
        size: int = getattr(self._limits, f"{slot}_slots")
        taken = {attempt.place for attempt in self._attempts if attempt.slot == slot}
        free = [place for place in range(size) if place not in taken]
        if not free:
            return False
        kinds = SLOT_KINDS[slot]
        with self._database.read() as connection:
            waiting = leases.next_claimable(connection, kinds)
        if waiting is None:
            return False
        admitted = self._gate.ask(waiting, slot, free[0], self._attempts)
        if admitted is None:
            return False
        lease_length = timedelta(seconds=self._limits.lease_seconds)
        token = uuid.uuid4().hex
        with self._database.write("claim") as connection:
            worker_id, number = self._presence.worker_id, waiting.number
            job = leases.claim(connection, kinds, worker_id, token, lease_length, only=number)
            if job is not None:
                events.append(connection, job.id, admitted.rows)
        if job is None:
            return False
        self._begin(job, slot, free[0], Lease(job.id, token), admitted.need)
        return True

    def _begin(self, job: Job, slot: str, place: int, lease: Lease, need: Need) -> None:
        in_a_row = job.attempt - job.checkpoint_attempt - 1
        if in_a_row >= self._limits.attempt_limit:
            self._fail(job, lease, AttemptsExhausted(in_a_row, "the loss of what ran it"))
            return
        try:
            with self._database.read() as connection:
                dataset = job.dataset_id and datasets.get(connection, job.dataset_id, job.project)
                parent = None
                if dataset and dataset.parent:
                    parent = datasets.get(connection, dataset.parent, job.project)
                trail = Trail(job, events.origin(connection, job.id))
            machine = self._machine.at_place(place)
            spec_path = write_spec(machine, job, trail, dataset or None, parent)
            folder = self._machine.attempt_folder(job)
            kind = CHILD_KINDS[job.type]
            handle = self._executor.start(AttemptSpec(kind, spec_path, folder))
        except (OSError, InsufficientStorage):
            # No processes, descriptors or space at the moment: no fault of the job.
            log.exception("job %s could not be started; queued again", job.id)
            changes = {"not_before": utc_now() + _START_AGAIN_AFTER}
            with self._database.write("put_back") as connection:
                lifecycle.move(connection, job, JobEvent.LOSE, lease=lease, changes=changes)
            return
        except GraftError as error:
            self._fail(job, lease, error)
            return
        figures = MetricsFiles(machine.run_folder(job.id), job.attempt)
        attempt = Attempt(job, slot, place, lease, handle, folder, figures, trail, need)
        self._attempts.append(attempt)
        trail.begin()

    # -- attending ---------------------------------------------------------------------------

    def _attend_alone(self, attempt: Attempt) -> bool:
        """Attend one attempt; what goes wrong with it must not touch the others.

        True if it ended. An attempt that cannot be attended for a reason that another look will
        not mend is killed and its job queued again, with a fault counted.
        """
        try:
            with attempt.trail.about():
                return self._attend(attempt)
        except AWAY as error:
            log.warning("job %s could not be attended; trying again: %s", attempt.job.id, error)
            return False
        except Exception:  # a bug of ours: it costs this attempt, not the worker
            log.exception("job %s cannot be attended; its attempt is given up", attempt.job.id)
            self._abandon(attempt)
            with suppress(LeaseLost):
                self._count_fault(attempt, "an error of the worker; its log says more")
            return True

    def _attend(self, attempt: Attempt) -> bool:
        """Read, record, renew, stop or finish one attempt; True if it ended."""
        try:
            # Polled before reading: what an ended child wrote is then read completely.
            outcome = self._executor.poll(attempt.handle)
            self._record(attempt)
            if isinstance(outcome, (Exited, Lost)):
                self._conclude(attempt, outcome)
                self._attempts.remove(attempt)
                attempt.trail.end()
                self._tidy(attempt)
                return True
            if time.monotonic() - attempt.renewed_at >= self._limits.heartbeat_seconds:
                self._renew(attempt)
            self._stop_if_asked(attempt)
        except LeaseLost:
            log.warning("the lease of job %s is over; its child is stopped", attempt.job.id)
            self._abandon(attempt)
            return True
        return False

    def _record(self, attempt: Attempt) -> None:
        """Write what the child has said since the last time."""
        path = attempt.folder / PROGRESS_FILE
        lines, offset_bytes = read_progress(path, attempt.offset_bytes)
        if not lines:
            return
        changes: dict[str, Any] = {}
        rows: list[tuple[str, dict[str, Any]]] = []
        for line in lines:
            attempt.take(line, changes, rows)
        if attempt.candidate is not None:  # again and again until it is done: once is enough
            publish.offer(
                self._database, self._blobs, attempt.job, attempt.lease, attempt.candidate
            )
            attempt.candidate = None
        if changes or rows:
            with self._database.write("progress") as connection:
                leases.record(connection, attempt.lease, changes, rows)
        attempt.offset_bytes = offset_bytes
        attempt.progressed_at = time.monotonic()
        attempt.figures.take(lines, offset_bytes)

    def _renew(self, attempt: Attempt) -> None:
        """Prolong the lease."""
        now = time.monotonic()
        length = timedelta(seconds=self._limits.lease_seconds)
        with self._database.write("heartbeat") as connection:
            leases.renew(connection, attempt.lease, length)
        attempt.renewed_at = now

    def _stop_if_asked(self, attempt: Attempt) -> None:
        """Stop the child of a job that is to be cancelled or paused, or that has stalled."""
        with self._database.read() as connection:
            status = leases.status_of_held(connection, attempt.lease)
        if status is JobState.CANCELLING and attempt.stopping is not JobState.CANCELLING:
            self._executor.cancel(attempt.handle, self._limits.cancel_grace_seconds)
            attempt.stopping = status
        elif status is JobState.PAUSING and attempt.stopping is None:
            self._executor.cancel(attempt.handle, self._limits.pause_grace_seconds)
            attempt.stopping = status
        silent_seconds = time.monotonic() - attempt.progressed_at
        if silent_seconds > self._limits.stall_seconds and attempt.stall is None:
            attempt.stall = AttemptStalled(attempt.job.id, silent_seconds)
            self._executor.cancel(attempt.handle, self._limits.cancel_grace_seconds)

    # -- ending ------------------------------------------------------------------------------

    def _conclude(self, attempt: Attempt, outcome: Exited | Lost) -> None:
        """Write the end of an attempt whose child has been reaped."""
        remove_scratch(attempt.folder)
        job, lease, last = attempt.job, attempt.lease, attempt.last_line
        if last is not None and last["kind"] == "result":
            try:
                publish.finish(self._database, self._blobs, job, lease, last, attempt.report_sha256)
            except LeaseLost:
                raise
            except GraftError as error:
                self._fail(job, lease, error)
            return
        if last is not None:
            told = {key: last[key] for key in ("code", "facts", "message")}
            self._move(attempt, JobEvent.FAIL, {"error": told})
        elif attempt.stopping is not None:
            self._move(attempt, JobEvent.STOP)
        elif isinstance(outcome, Lost):
            self._move(attempt, JobEvent.LOSE, {"not_before": utc_now() + _AGAIN_AFTER_LOSS})
        elif outcome.status == STOPPED_ON_REQUEST or (outcome.killed_by_us and not attempt.stall):
            self._move(attempt, JobEvent.LOSE)  # the service is stopping
        else:
            self._count_fault(attempt, outcome.describe())

    def _tidy(self, attempt: Attempt) -> None:
        """Remove what only a further attempt would need, once there will be none."""
        with self._database.read() as connection:
            status = jobs.get(connection, attempt.job.id, attempt.job.project).status
        if status in TERMINAL:
            faults.reach("worker.before_tidying")
            bound_caches(self._machine.data_folder, self._limits.disk_cache_bytes)
            with self._database.write("forget") as connection:
                forget_rows(connection, self._limits)
            folder = self._machine.run_folder(attempt.job.id) / "checkpoints"
            shutil.rmtree(folder, ignore_errors=True)

    def _count_fault(self, attempt: Attempt, reason: str) -> None:
        """Queue a job again whose child died by its own fault, or give up."""
        job, lease = attempt.job, attempt.lease
        died = attempt.stall or AttemptDied(job.id, reason)
        earlier = 0 if attempt.checkpoints else job.faults
        count = earlier + 1
        log.warning("%s (%d in a row without a new checkpoint)", died, count)
        if count >= self._limits.fault_limit:
            self._fail(job, lease, AttemptsExhausted(count, reason))
            return
        wait = timedelta(seconds=self._limits.first_backoff_seconds * 4 ** (count - 1))
        with self._database.write("fault") as connection:
            warning = {"code": died.code, "message": str(died)}
            leases.record(connection, lease, {}, [("warning", warning)])
            changes = {"faults": count, "not_before": utc_now() + wait}
            lifecycle.move(connection, job, JobEvent.LOSE, lease=lease, changes=changes)

    def _fail(self, job: Job, lease: Lease, error: GraftError) -> None:
        changes = {"error": to_wire(error)}
        with self._database.write("fail") as connection:
            lifecycle.move(connection, job, JobEvent.FAIL, lease=lease, changes=changes)

    def _move(
        self, attempt: Attempt, event: JobEvent, changes: dict[str, Any] | None = None
    ) -> None:
        with self._database.write("move") as connection:
            lifecycle.move(
                connection,
                attempt.job,
                event,
                lease=attempt.lease,
                changes=changes,
                report_sha256=attempt.report_sha256,
            )

    def _abandon(self, attempt: Attempt) -> None:
        """Kill a child whose job is not ours any more, and forget it once it is reaped."""
        self._executor.cancel(attempt.handle, 0.0)
        while not isinstance(self._executor.poll(attempt.handle), (Exited, Lost)):
            self._executor.wait(self._limits.tick_seconds)
        if attempt in self._attempts:
            self._attempts.remove(attempt)
            attempt.trail.end()

    def _stop_overdue(self) -> None:
        """Stop children whose lease could not be renewed for two thirds of its length.

        By then another worker may be about to take the job; two must never publish or train.
        """
        limit = self._limits.lease_seconds * 2 / 3
        for attempt in list(self._attempts):
            if time.monotonic() - attempt.renewed_at > limit:
                self._abandon(attempt)

    def _drain(self) -> None:
        """Ask every child for a last checkpoint and queue the jobs again."""
        faults.reach("worker.before_drain")
        for attempt in self._attempts:
            self._executor.cancel(attempt.handle, self._limits.drain_grace_of(attempt.slot))
        while self._attempts:
            for attempt in list(self._attempts):
                self._attend_alone(attempt)
            self._stop_overdue()
            self._executor.wait(self._limits.tick_seconds)
        self._executor.close()
