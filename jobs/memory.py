"""How much memory this host has, how much of it is free, and the most that we had.

`jobs.gpus` knows the first two of GPUs.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60  # control groups of version 1 say a number like this for "none"


@dataclass(frozen=True)
class Memory:
    """The memory of a host or of one GPU.

    Args:
        total_bytes: All that processes of ours may ever have.
        available_bytes: What could be had now.
    """

    total_bytes: int
    available_bytes: int


def host_memory(
    proc: Path = Path("/proc"), control_groups: Path = Path("/sys/fs/cgroup")
) -> Memory | None:
    """Return the memory of this host within the limits of our control groups; None if unknown."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        total_bytes, available_bytes = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
        for folder in _control_groups_of_us(proc, control_groups):
            limit_bytes, used_bytes = _limit_of(folder)
            total_bytes = min(total_bytes, limit_bytes)
            available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return Memory(total_bytes, available_bytes)


def peak_bytes_of_process(proc: Path = Path("/proc")) -> int:
    """Return the most memory this process has had, in bytes.

    Not `ru_maxrss` where there is a `/proc`: Linux hands that down through `exec`, so that a small
    child of a large parent shows the parent's peak.
    """
    try:
        lines = (proc / "self" / "status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _control_groups_of_us(proc: Path, root: Path) -> list[Path]:
    """Return the folders of the groups that limit us, from ours to the outermost."""
    folders = []
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / controllers
            ours = top / path.lstrip("/")
            folders += [f for f in (ours, *ours.parents) if f == top or top in f.parents]
    return folders


def _limit_of(folder: Path) -> tuple[int, int]:
    """Return limit and use of a group, files that can be dropped not counted, in bytes."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if not (folder / limit_name).exists():
            continue
        limit = (folder / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _NO_LIMIT_BYTES:
            break
        statistics = dict(
            line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines()
        )
        droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        return int(limit), max(0, int((folder / used_name).read_text()) - droppable)
    return _NO_LIMIT_BYTES, 0
