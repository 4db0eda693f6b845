"""An artifact as one zip file: out for download, and in again with every check of a new one."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from jobs.datasets.archive import read_archive
from jobs.datasets.limits import IngestLimits
from models_cache.artifacts import (
    ARTIFACT_FILES,
    FACTS_FILE,
    Artifact,
    parse_artifact,
    verify_artifact,
)
from models_cache.blobs import BlobStore
from models_cache.durable import sha256_of_file
from models_cache.errors import ArtifactMalformed

_CHUNK_BYTES = 1 << 20
#: Weights do not compress; the ratio rule of uploads stays, the size of a file is an artifact's.
_LIMITS = IngestLimits(max_entries=16, max_entry_bytes=4 << 30)
#: The same content gives the same zip: what the archive says of time is always this.
_TIME = (1980, 1, 1, 0, 0, 0)


def pack_artifact(blobs: BlobStore, files: dict[str, Any], destination: BinaryIO) -> int:
    """Write the files of an artifact into a zip, uncompressed.

    Args:
        blobs: Where the files are.
        files: `{name: {"sha256", "size"}}` as a version's row holds it.
        destination: An empty file opened for reading and writing; rewound afterwards.

    Returns:
        The size of the zip in bytes.
    """
    with zipfile.ZipFile(destination, "w", zipfile.ZIP_STORED) as archive:
        for name, entry in sorted(files.items()):
            with (
                blobs.open(entry["sha256"]) as source,
                archive.open(zipfile.ZipInfo(name, _TIME), "w", force_zip64=True) as member,
            ):
                shutil.copyfileobj(source, member, _CHUNK_BYTES)
    size_bytes = destination.tell()
    destination.seek(0)
    return size_bytes


def unpack_artifact(blobs: BlobStore, path: Path) -> Artifact:
    """Store the files of an artifact's zip and return it, completely checked.

    The zip's files must be exactly those that its `artifact.json` describes; nothing is stored
    before they are.

    Raises:
        DatasetError: The zip itself is hostile or damaged.
        ArtifactMalformed: Files are missing, unexpected or do not fit together.
    """
    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir(mode=0o700)
    try:
        found = _extract(path, folder)
        if FACTS_FILE not in found:
            raise ArtifactMalformed(f"the archive lacks {FACTS_FILE}")
        described = parse_artifact((folder / FACTS_FILE).read_bytes())
        if unlike := found ^ described.files.keys():
            raise ArtifactMalformed(
                f"the archive's files are not those of {FACTS_FILE}: {', '.join(sorted(unlike))}"
            )
        for name, blob in described.files.items():
            if sha256_of_file(folder / name) != blob.sha256:
                raise ArtifactMalformed(f"{name} is not the file that {FACTS_FILE} describes")
        for name in described.files:
            blobs.put_file(folder / name)
        return verify_artifact(blobs, described.digest)
    finally:
        shutil.rmtree(folder)


def _extract(path: Path, folder: Path) -> set[str]:
    """Write the archive's files into a folder and return their names."""
    names = set()
    for entry, content in read_archive(path, _LIMITS):
        if entry.name not in ARTIFACT_FILES:
            raise ArtifactMalformed(f"the archive holds {entry.name[:80]!r}")
        with (folder / entry.name).open("xb") as file:
            for chunk in content:
                file.write(chunk)
        names.add(entry.name)
    return names
