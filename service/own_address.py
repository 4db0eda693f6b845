"""Where a process of this machine finds the api that was started with the same settings."""

from __future__ import annotations

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def own_host(host: str) -> str:
    """Return the address to ask at, of one that is listened on."""
    return _EVERY_ADDRESS.get(host, host)


def own_url(host: str, port: int) -> str:
    """Return the URL to ask at, without a path."""
    found = own_host(host)
    return f"http://{f'[{found}]' if ':' in found else found}:{port}"
