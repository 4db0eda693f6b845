"""A folder with real processes in it whose fault points are chosen while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models_cache.faults import ASKED_FOLDER
from tests.faults.call_sites import REPOSITORY
from tests.waiting import until

_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class FaultPoints:
    """The points of the processes that share a folder and the plan `*=ask`."""

    folder: Path

    def ask(self, point: str, action: str) -> None:
        """Have the next process that reaches `point` do `action`, once."""
        self.taken(point).unlink(missing_ok=True)
        asked = self.folder / ASKED_FOLDER / self.taken(point).name
        asked.parent.mkdir(parents=True, exist_ok=True)
        temporary = asked.with_suffix(".writing")
        temporary.write_text(action)
        temporary.rename(asked)

    def taken(self, point: str) -> Path:
        """Return the file that exists when the point was reached."""
        return self.folder / point.replace(":", "-")

    def was_reached(self, point: str) -> bool:
        """Tell whether a process did what was asked for."""
        return self.taken(point).exists()

    def forget(self) -> None:
        """Take back what nobody reached."""
        for asked in (self.folder / ASKED_FOLDER).glob("*"):
            asked.unlink(missing_ok=True)


@contextmanager
def respawning(
    place: str, *arguments: str, environment: Mapping[str, str], log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `module:function` in forks that come back when they die; see `respawner`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.respawner", place, *arguments],
            env={**clean, **environment, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stopped_processes(session: int) -> list[int]:
    """Return the processes of a session that are stopped by a signal."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "T" and int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def wait_for_a_stopped(session: int, seconds: float = 30.0) -> int:
    """Return the process of a session that has stopped itself."""
    return until(lambda: next(iter(stopped_processes(session)), 0), seconds, what="a pause")
