"""The mark of a restore that is not finished; imports little, since every process looks for it."""

from __future__ import annotations

from pathlib import Path

from jobs.backup.errors import RestoreUnfinished

_NAME = "restore-unfinished.json"


def mark_path(data_folder: Path) -> Path:
    """Return where the mark lies while a restore is at work, or after it was interrupted."""
    return data_folder / _NAME


def require_whole(data_folder: Path) -> None:
    """Refuse to work on a data folder whose restore was not finished.

    Raises:
        RestoreUnfinished: It was not.
    """
    if mark_path(data_folder).exists():
        raise RestoreUnfinished(str(data_folder))
