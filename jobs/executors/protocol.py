"""What the worker asks of a place where attempts run; every executor passes the same tests."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

AttemptKind = Literal["train", "ingest", "download"]

LOG_FILE_NAME = "log.txt"  # in the attempt folder: standard output and error of the child


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """One attempt, ready to be started.

    Args:
        kind: What sort of child does it: `train` needs torch, the others must not have it.
        spec_path: The JSON file that is the child's one argument; it is on disk.
        attempt_folder: Where progress and log go; it exists.
    """

    kind: AttemptKind
    spec_path: Path
    attempt_folder: Path


@dataclass(frozen=True, slots=True)
class Running:
    """The attempt has not ended.

    Args:
        pid: Number of its process; None while it is being started.
    """

    pid: int | None


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended and was reaped, and its group is gone: the slot is free.

    Whether the attempt succeeded is written in its progress file.

    Args:
        status: Exit status; None if a signal killed it or it never began.
        signal: Number of the signal that killed it, else None.
        killed_by_us: It was cancelled before it ended.
    """

    status: int | None
    signal: int | None
    killed_by_us: bool

    def describe(self) -> str:
        """Say how it ended: `exit status 3`, `killed by SIGSEGV`."""
        if self.signal is not None:
            return f"killed by {_name_of_signal(self.signal)}"
        if self.status is None:
            return "cancelled before it began"
        return f"exit status {self.status}"


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True)
class Lost:
    """Where it ran is gone, and its process with it: no fault of the attempt. The slot is free.

    Args:
        reason: What went, in a few words.
    """

    reason: str


Ended = Exited | Lost
Poll = Running | Exited | Lost


@dataclass(slots=True, eq=False)
class Handle:
    """A started attempt, as its executor knows it.

    Args:
        attempt: What was started.
        token: The executor's name for it, for `reattach`.
        ended: How it ended; set by the executor's `poll`, and final.
    """

    attempt: AttemptSpec
    token: str
    ended: Ended | None = None


class Executor(Protocol):
    """A place where attempts run. No call blocks but `wait` and `close`; one thread calls."""

    def start(self, attempt: AttemptSpec) -> Handle:
        """Start an attempt."""
        ...

    def poll(self, handle: Handle) -> Poll:
        """Tell how an attempt is, and do what is due: deliver cancels, kill, reap."""
        ...

    def cancel(self, handle: Handle, grace_seconds: float) -> None:
        """Ask an attempt to end, and kill it after the grace; its end is told by `poll`.

        A second call may shorten the grace. An attempt that has ended is left alone.
        """
        ...

    def wait(self, timeout_seconds: float) -> None:
        """Sleep until `poll` may have something new, at most for the timeout."""
        ...

    def reattach(self, attempt: AttemptSpec, token: str) -> Handle | None:
        """Take over an attempt that another worker started; None where it died with it."""
        ...

    def close(self) -> None:
        """Kill every attempt at once and give everything back."""
        ...
