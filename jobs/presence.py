"""Who is alive: each worker holds a file lock, and whoever obtains a lock knows its owner dead.

On one host recovery is therefore immediate; the lease covers workers on other hosts, whose locks
cannot be seen.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path

from jobs import lifecycle
from jobs.states import JobEvent
from jobs.store import leases, workers
from jobs.store.database import DATABASE_AWAY, Database

log = logging.getLogger(__name__)


class Presence:
    """The sign of life of one worker.

    Args:
        database: Where workers are registered.
        folder: Folder of lock files, on a disk of this host.
        worker_id: The id of this worker.
        device: What it trains on, for people to read.
    """

    def __init__(self, database: Database, folder: Path, worker_id: str, device: str) -> None:
        self._database = database
        self._folder = folder
        self._device = device
        self._host = socket.gethostname()
        self._lock: TextIOWrapper | None = None
        self.worker_id = worker_id

    def begin(self) -> None:
        """Take the lock, then register: a row never stands without its lock."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock_path(self.worker_id).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._register()

    def _register(self) -> None:
        with self._database.write("worker_register") as connection:
            workers.register(connection, self.worker_id, self._host, os.getpid(), self._device)

    def beat(self) -> None:
        """Say that this worker is alive; registers again if it was taken for dead."""
        with self._database.write("worker_beat") as connection:
            known = workers.beat(connection, self.worker_id)
        if not known:
            self._register()

    def end(self) -> None:
        """Unregister and release the lock."""
        try:
            with self._database.write("worker_remove") as connection:
                workers.remove(connection, [self.worker_id])
        except DATABASE_AWAY as error:  # the next worker finds the lock free
            log.warning("worker %s could not unregister: %s", self.worker_id, error)
        if self._lock is not None:
            self._lock_path(self.worker_id).unlink(missing_ok=True)
            self._lock.close()

    def recover_jobs(self, silent_after: timedelta) -> list[str]:
        """Queue again what dead workers held; return the ids of those jobs.

        Args:
            silent_after: A worker of another host is dead when silent for so long; the length of a
                lease.
        """
        with self._database.read() as connection:
            here = workers.on_host(connection, self._host)
            silent = workers.silent_for(connection, silent_after)
            over = leases.with_lease_over(connection, silent_after)
        dead = [w for w in here if w != self.worker_id and self._is_dead(w)]
        dead += [w for w in silent if w not in here and w != self.worker_id]
        if not dead and not over:
            return []
        with self._database.write("recovery") as connection:
            lost = {job.id: job for job in leases.held_by_workers(connection, dead)}
            lost |= {job.id: job for job in leases.with_lease_over(connection, silent_after)}
            for job in lost.values():
                lifecycle.move(connection, job, JobEvent.LOSE)
            workers.remove(connection, dead)
        for worker_id in set(dead) & set(here):  # a silent one of another host may still live
            self._lock_path(worker_id).unlink(missing_ok=True)
        return list(lost)

    def _is_dead(self, worker_id: str) -> bool:
        try:
            with self._lock_path(worker_id).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def _lock_path(self, worker_id: str) -> Path:
        return self._folder / f"{worker_id}.lock"
