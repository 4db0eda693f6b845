"""What children do in the tests of processes: small, without torch, told by a spec.

A spec is `{"do": name of a function below, "folder": where `facts.json` goes, ...}`. A child that
waits writes its facts first, so that a test knows that it is there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from jobs.executors.protocol import AttemptKind, AttemptSpec


def write_attempt(
    folder: Path, do: str, kind: AttemptKind = "train", **more: object
) -> AttemptSpec:
    folder.mkdir(parents=True, exist_ok=True)
    spec_path = folder / "spec.json"
    spec_path.write_text(json.dumps({"do": do, "folder": str(folder), **more}))
    return AttemptSpec(kind=kind, spec_path=spec_path, attempt_folder=folder)


def facts_of(attempt: AttemptSpec) -> dict[str, Any] | None:
    """Return what the child of an attempt has written; None if nothing yet."""
    return facts_in(attempt.attempt_folder)


def facts_in(folder: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    except FileNotFoundError:
        return None
    return facts


def main(spec_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    globals()[f"do_{spec['do']}"](spec)


def tell(spec: dict[str, Any], **facts: object) -> None:
    path = Path(spec["folder"]) / "facts.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "at": time.monotonic(), **facts}))
    temporary.replace(path)


def do_exit(spec: dict[str, Any]) -> None:
    tell(spec)
    sys.stdout.write("bye\n")  # into a buffer
    sys.exit(spec["status"])


def do_die(spec: dict[str, Any]) -> None:
    os.kill(os.getpid(), spec["signal"])


def do_fail(spec: dict[str, Any]) -> None:
    raise ValueError(spec["message"])


def do_describe(spec: dict[str, Any]) -> None:
    listed = list(Path("/proc/self/fd").iterdir())
    descriptors = [fd for fd in listed if fd.is_symlink()]  # not the one of the listing itself
    tell(
        spec,
        parent=os.getppid(),
        group=os.getpgrp(),
        nice=os.nice(0),
        session_nice=_session_nice(),
        descriptors={fd.name: str(fd.readlink()) for fd in descriptors},
        blocked_signals=[int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        terminate_is_default=signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        threads=len(list(Path("/proc/self/task").iterdir())),
    )


def _session_nice() -> int | None:
    """Return what the kernel shares the CPU by between sessions; None if it does not do that."""
    group = Path("/proc/self/autogroup")  # "/autogroup-1 nice 3"
    return int(group.read_text().split()[-1]) if group.exists() else None


def do_wait(spec: dict[str, Any]) -> None:
    tell(spec)
    wait_for_a_signal()


def wait_for_a_signal() -> NoReturn:
    while True:
        signal.pause()


def do_ignore_terminate(spec: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    do_wait(spec)


def do_stop_itself(spec: dict[str, Any]) -> None:
    tell(spec)
    os.kill(os.getpid(), signal.SIGSTOP)


def do_multiply(spec: dict[str, Any]) -> None:
    """Leave a fork that ignores SIGTERM and, if asked, a program; then wait or end."""
    forked = os.fork()
    if forked == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_for_a_signal()
    pids = [forked]
    if spec["program"]:
        child = subprocess.Popen(["sleep", "600"])
        child.returncode = 0  # left alone on purpose
        pids.append(child.pid)
    tell(spec, pids=pids)
    if spec["then"] == "wait":
        wait_for_a_signal()


if __name__ == "__main__":
    main(sys.argv[1])
