"""How many connections an api process takes, and how long it waits for slow clients."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

_RESERVED_FILES = 64  # for the database, blobs, logs and the way to the inference process
_LEAST_CONNECTIONS = 16


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold open, and for how long.

    Args:
        connections: Most at once.
        uploads: Most requests at once whose bodies are still arriving.
        head_seconds: In which a request's head has to be there.
        grace_seconds: For so long a body, or the reading of an answer, may be slower than the rate.
        min_bytes_per_second: That rate.
    """

    connections: int
    uploads: int
    head_seconds: float
    grace_seconds: float
    min_bytes_per_second: int

    @property
    def backlog(self) -> int:
        """How many connections are accepted in one go, before any of them is seen."""
        return self.connections


def within_open_files(wanted: ConnectionLimits) -> ConnectionLimits:
    """Return limits that leave file descriptors free, after raising how many there may be.

    A connection takes one, and one more while it uploads.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY:
        most = max(_LEAST_CONNECTIONS, (hard - _RESERVED_FILES) // 2)
        wanted = replace(wanted, connections=min(wanted.connections, most))
    return replace(wanted, uploads=min(wanted.uploads, wanted.connections // 2))
