"""What a source of weights is told and may answer, whether or not it is behind a connection.

Apart from `models_cache.downloads`, so that training and inference need no HTTP client: a bare GPU
image loads weights from its vault.
"""

from __future__ import annotations

import shutil
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from models_cache.egress_policy import PUBLIC_ONLY, EgressPolicy
from models_cache.errors import InsufficientStorage

Report = Callable[[int, int | None], None]  # bytes done, bytes in all if known


class SourceFailed(Exception):
    """One source could not deliver the file; the reason is for the list of all sources tried."""


class NotOffered(SourceFailed):
    """The source does not have the file or was not asked: no fault of anyone."""


@dataclass(frozen=True)
class Download:
    """What to fetch and under which rules.

    Args:
        url: The address, without credentials.
        partial: Where bytes are collected; its record is beside it.
        max_bytes: Larger files are refused.
        may_visit: Tells whether a redirect may lead to an address.
        egress: Where connections may lead at all.
        authorization: Value of that header, if the source asks for one.
        connect_timeout_seconds: Until a connection must stand.
    """

    url: str
    partial: Path
    max_bytes: int
    may_visit: Callable[[str], bool]
    egress: EgressPolicy = PUBLIC_ONLY
    authorization: str | None = None
    connect_timeout_seconds: float = 5.0

    @property
    def record(self) -> Path:
        """The file beside the partial one."""
        return self.partial.with_name(f"{self.partial.name}.json")

    def discard(self) -> None:
        """Remove everything kept."""
        self.partial.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def split_credentials(url: str) -> tuple[str, str | None]:
    """Return an address without user and password, and the `Authorization` that they make."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    if not at:
        return url, None
    pair = ":".join(unquote(part) for part in (user.partition(":")[0], user.partition(":")[2]))
    header = f"Basic {b64encode(pair.encode()).decode()}"
    return urlunsplit(parts._replace(netloc=place)), header


def without_credentials(url: str) -> str:
    """Return an address without user, password and query: fit to be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def require_space(folder: Path, needed_bytes: int, doing: str) -> None:
    """Raise `InsufficientStorage` if the file system of `folder` has less free than needed."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise InsufficientStorage(f"{doing} ({needed_bytes} bytes)")
