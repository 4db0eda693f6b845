"""An artifact as one zip file: out for download, and in again with every check of a new one."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from jobs.datasets.archive import read_archive
from jobs.datasets.limits import IngestLimits
from models_cache.artifacts import FACTS_FILE, GOLDEN_FILE, MODEL_FILE, Artifact, verify_artifact
from models_cache.blobs import BlobStore
from models_cache.errors import ArtifactMalformed

_NAMES = frozenset({FACTS_FILE, MODEL_FILE, GOLDEN_FILE})
#: Weights do not compress; the ratio rule of uploads stays, the size of a file is an artifact's.
_LIMITS = IngestLimits(max_entries=16, max_entry_bytes=4 << 30)
#: The same content gives the same zip: what the archive says of time is always this.
_TIME = (1980, 1, 1, 0, 0, 0)


def pack_artifact(blobs: BlobStore, files: dict[str, Any], destination: Path) -> Path:
    """Write the files of an artifact into a zip, uncompressed, and return its path.

    Args:
        blobs: Where the files are.
        files: `{name: {"sha256", "size"}}` as a version's row holds it.
        destination: The zip; its folder is made.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(destination, "w", zipfile.ZIP_STORED) as archive:
        for name, entry in sorted(files.items()):
            with (
                blobs.open(entry["sha256"]) as source,
                archive.open(zipfile.ZipInfo(name, _TIME), "w", force_zip64=True) as member,
            ):
                while chunk := source.read(1 << 20):
                    member.write(chunk)
    return destination


def unpack_artifact(blobs: BlobStore, path: Path) -> Artifact:
    """Store the files of an artifact's zip and return it, completely checked.

    Raises:
        DatasetError: The zip itself is hostile or damaged.
        ArtifactMalformed: Files are missing, unexpected or do not fit together.
    """
    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir(mode=0o700)
    try:
        for entry, content in read_archive(path, _LIMITS):
            if entry.name not in _NAMES:
                raise ArtifactMalformed(f"the archive holds {entry.name[:80]!r}")
            with (folder / entry.name).open("xb") as file:
                for chunk in content:
                    file.write(chunk)
        missing = _NAMES - {part.name for part in folder.iterdir()}
        if missing:
            raise ArtifactMalformed(f"the archive lacks {', '.join(sorted(missing))}")
        stored = {name: blobs.put_file(folder / name) for name in sorted(_NAMES)}
        return verify_artifact(blobs, stored[FACTS_FILE].sha256)
    finally:
        for part in folder.iterdir():
            part.unlink()
        folder.rmdir()
