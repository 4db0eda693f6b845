"""A folder of labelled images as an archive that can be uploaded."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def zipped(folder: Path) -> Iterator[Path]:
    """Yield a zip of a folder's files, removed when the block ends.

    Names are relative to the folder; hidden files and links are left out. Nothing is compressed:
    photographs are already.

    Raises:
        typer.BadParameter: There is no file in it.
    """
    files = [path for path in sorted(folder.rglob("*")) if _is_wanted(path, folder)]
    if not files:
        raise typer.BadParameter(f"there is no file in {folder}")
    with tempfile.TemporaryDirectory(prefix="graft-") as temporary:
        archive = Path(temporary) / f"{folder.resolve().name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for path in files:
                file.write(path, path.relative_to(folder).as_posix())
        yield archive


def _is_wanted(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not path.is_symlink() and not any(p[0] == "." for p in parts)
