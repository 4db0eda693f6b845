"""Asks the kernel for a port that nobody uses."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """Return a TCP port of `host` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
