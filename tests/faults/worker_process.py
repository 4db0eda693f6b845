"""What a fork of the respawner runs: a real worker, with children that cost nothing.

python -m tests.faults.respawner tests.faults.worker_process:run DATA_FOLDER [LOW BALLAST [LEASE]]

`LOW` and `BALLAST` are bytes, as `GRAFT_LOW_WATER_BYTES` and `GRAFT_BALLAST_BYTES`; `LEASE`
is seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import FrameType

import jobs.store.database
import jobs.store.lease_clock
from jobs.executors.local import LocalExecutor
from jobs.presence import Presence
from jobs.specs import Machine
from jobs.store.ballast import Ballast
from jobs.store.database import Database
from jobs.worker import Worker
from jobs.worker_limits import WorkerLimits
from models_cache import faults
from models_cache.blobs import BlobStore

LIMITS = WorkerLimits(
    lease_seconds=1.2,
    heartbeat_seconds=0.25,
    sweep_seconds=0.2,
    stall_seconds=6.0,  # a busy machine takes seconds to start a child
    first_backoff_seconds=0.01,
    cancel_grace_seconds=0.3,
    pause_grace_seconds=0.3,
    drain_grace_seconds=1.0,
    disk_cache_bytes=1 << 20,
)
_PLAN = "*=ask"


_CLOCK_FILE = "clock"  # in the data folder: seconds that the wall clock was set forward or back


def _fake_the_wall_clock(data_folder: Path) -> None:
    """Have this process see a wall clock that tests set while it runs."""

    def offset_seconds() -> float:
        mine = f"{_CLOCK_FILE}-{os.getppid()}"  # of one worker, by its respawner
        for name in (mine, _CLOCK_FILE):
            with suppress(FileNotFoundError, ValueError):
                return float((data_folder / name).read_text())
        return 0.0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=offset_seconds())

    real_time = time.time
    time.time = lambda: real_time() + offset_seconds()
    for module in (jobs.store.database, jobs.store.lease_clock):
        module.datetime = Clock  # type: ignore[attr-defined]


def run(
    data_folder_name: str, low_water: str = "0", ballast_bytes: str = "0", lease: str = ""
) -> None:
    """Work until SIGTERM."""
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(asctime)s %(message)s")
    data_folder = Path(data_folder_name)
    _fake_the_wall_clock(data_folder)
    faults_folder = data_folder / "run" / "faults"
    faults.arm(_PLAN, faults_folder)
    ballast = Ballast(data_folder / "ballast", int(ballast_bytes), int(low_water))
    database = Database(f"sqlite:///{data_folder / 'graft.db'}", ballast)
    database.migrate()
    executor = LocalExecutor(
        dict(os.environ), preload=(), modules={"ingest": "tests.faults.cheap_child"}
    )
    worker_id = f"worker_{uuid.uuid4().hex}"
    presence = Presence(database, data_folder / "run" / "workers", worker_id, "cpu")
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    signal.signal(signal.SIGTERM, stop)
    machine = Machine(data_folder=data_folder, faults=_PLAN)
    blobs = BlobStore(data_folder / "blobs")
    lease_seconds = float(lease or LIMITS.lease_seconds)
    limits = replace(LIMITS, low_water_bytes=int(low_water), lease_seconds=lease_seconds)
    Worker(database, blobs, executor, machine, presence, limits).run(lambda: bool(stopping))
    database.close()
