"""Judges in which order files were flushed, renamed and committed; a kill cannot show that.

What was written and not flushed survives a killed process and not a power cut. So the calls of the
operating system are recorded, and the order is judged: the file's bytes are flushed before it gets
its name, and the folder that holds the name before a row that points to it is committed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMIT = "commit"


@dataclass(frozen=True)
class Call:
    """`fsync` of a path, `rename` from a path to another, or `commit` of a transaction."""

    name: str
    path: str = ""
    target: str = ""


@contextmanager
def recorded_calls(patch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """Record the calls of this process; whoever commits appends `Call(COMMIT)` itself."""
    calls: list[Call] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: Any) -> None:  # noqa: ANN401 - a number, or what has one
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        fsync(number)
        calls.append(Call("fsync", str(Path(f"/proc/self/fd/{number}").readlink())))

    def record_replace(source: Any, target: Any, **more: Any) -> None:  # noqa: ANN401 - paths
        replace(source, target, **more)
        calls.append(Call("rename", str(source), str(target)))

    with patch.context() as patched:
        patched.setattr(os, "fsync", record_fsync)
        patched.setattr(os, "replace", record_replace)
        yield calls


def faults_of_order(calls: list[Call]) -> list[str]:
    """Return each file that could be torn or nameless after a power cut."""
    found = []
    for index, call in enumerate(calls):
        if call.name != "rename":
            continue
        flushed = {before.path for before in calls[:index] if before.name == "fsync"}
        if call.path not in flushed:
            found.append(f"{call.target} has its name before its bytes are flushed")
        folder = str(Path(call.target).parent)
        rest = calls[index + 1 :]
        until_commit = rest[: rest.index(Call(COMMIT))] if Call(COMMIT) in rest else rest
        if Call("fsync", folder) not in until_commit:
            found.append(f"{call.target} is not flushed as a name before it is pointed to")
    return found
