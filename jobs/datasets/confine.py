"""Limits that a process sets for itself before it touches uploaded bytes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


def limit_memory(bytes_above_now: int) -> None:
    """Bound the address space: what is mapped now (interpreter, libraries) plus an allowance."""
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, mapped_pages * _PAGE_BYTES + bytes_above_now)
    _lower(resource.RLIMIT_CORE, 0)


def limit_ingest(
    *, memory_bytes: int, cpu_seconds: int, file_bytes: int, open_files: int = 256
) -> None:
    """Bound an ingest child: address space, processor time, size of a file, open files."""
    limit_memory(memory_bytes)
    _lower(resource.RLIMIT_CPU, cpu_seconds)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, open_files)


def allow_cpu(seconds: int) -> None:
    """Have the kernel end this process when what follows takes more processor time.

    The soft limit counts from the start of the process, so it is moved before each piece of work.
    """
    times = os.times()
    used = int(times.user + times.system) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def _lower(what: int, value: int) -> None:
    """Set the soft limit, and leave a stricter one that the system already set."""
    soft, hard = resource.getrlimit(what)
    ceilings = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min([value, *ceilings]), hard))
