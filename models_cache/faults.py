"""Named points in the code where a test may kill, pause or starve the process.

Nothing happens unless `arm` was called with a plan, which only a composition root does (setting
`GRAFT_FAULTS`, for tests). A plan is `point=action` pairs separated by commas:

    checkpoint.before_rename=kill,publish.before_tx=pause,train.step:12=enospc

Actions: `kill` (SIGKILL to itself), `pause` (SIGSTOP until someone sends SIGCONT), `enospc` and
`eio` (raise that `OSError`), `enomem` (raise `MemoryError`). Each pair fires once for all
processes that share `once_folder`, so that a restarted process gets past the point it died at.

The plan `*=ask` has every point look for its action in the file `asked/<point>` of `once_folder`,
so that a test can choose one after the other while the processes run.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

_plan: dict[str, str] = {}
_once_folder: Path | None = None

#: The folder below `once_folder` that a plan `*=ask` looks into.
ASKED_FOLDER = "asked"
_EVERY_POINT, _ASK = "*", "ask"

_ERRNO_OF_ACTION = {"enospc": errno.ENOSPC, "eio": errno.EIO}


def arm(plan: str, once_folder: Path) -> None:
    """Arm the points of `plan` in this process and those it forks; an empty plan disarms."""
    global _once_folder  # one plan per process, set by its composition root
    _plan.clear()
    _plan.update(
        (point, action)
        for point, _, action in (p.partition("=") for p in plan.split(","))
        if action
    )
    _once_folder = once_folder


def reach(point: str) -> None:
    """Do what the plan says for `point`, once; nothing if it is not armed."""
    action = _asked(point) if _plan.get(_EVERY_POINT) == _ASK else _planned(point)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "enomem":
        raise MemoryError
    else:
        code = _ERRNO_OF_ACTION[action]
        raise OSError(code, os.strerror(code))


def _planned(point: str) -> str | None:
    action = _plan.get(point)
    if action is None:
        return None
    assert _once_folder is not None
    _once_folder.mkdir(parents=True, exist_ok=True)
    try:
        (_once_folder / _file_name(point)).touch(exist_ok=False)
    except FileExistsError:
        return None
    return action


def _asked(point: str) -> str | None:
    """Take the action asked for; of several processes, the one whose rename succeeds."""
    assert _once_folder is not None
    taken = _once_folder / _file_name(point)
    try:
        (_once_folder / ASKED_FOLDER / taken.name).rename(taken)
    except FileNotFoundError:
        return None
    return taken.read_text()


def _file_name(point: str) -> str:
    return point.replace(":", "-")
