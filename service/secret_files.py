"""Secrets that lie in files, as containers get them, instead of in the environment."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def secret_in(path: Path) -> str:
    """Return the first line of a file; nothing if it cannot be read."""
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""


def with_password(url: str, path: Path) -> str:
    """Return `scheme://user@place` with the password in a file."""
    scheme, _, rest = url.partition("://")
    user, _, place = rest.rpartition("@")
    return f"{scheme}://{user}:{quote(secret_in(path), safe='')}@{place}"
