"""Uploads in parts: what has arrived of a large file, on disk until it is whole.

One folder per upload: what was announced, the parts as blobs named by their SHA-256, and at the end
what became of it. A part that is sent again is the same file, so whoever lost an answer repeats the
call. Nothing is in memory: an upload goes on after a restart. The folder is swept like everything
in `uploads/` that nobody used: an hour after its last part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from models_cache import durable, faults
from models_cache.blobs import Blob, BlobStore
from service.errors import UploadEnded, UploadMismatch, UploadNotFound
from service.uploads import LEFTOVER_SECONDS, Upload

_ANNOUNCED = "announced.json"
_OUTCOME = "outcome.json"
_PART_PREFIX = "part_"
_PART_ID = re.compile(r"part_([0-9a-f]{64})")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Announced:
    """What a client said about the file before it sent the first part.

    Args:
        project: Whose upload it is.
        file_name: What the file is called.
        size_bytes: Of the whole file.
        created_at: Unix seconds.
    """

    project: str
    file_name: str
    size_bytes: int
    created_at: int


@dataclass(frozen=True)
class Outcome:
    """How an upload ended, and the data set that it became."""

    status: Literal["completed", "cancelled"]
    dataset_id: str | None = None


@dataclass(frozen=True)
class PartialUpload:
    """One upload: its folder, what was announced, and how it ended, if it did."""

    id: str
    folder: Path
    announced: Announced
    outcome: Outcome | None

    @property
    def expires_at(self) -> int:
        """Unix second from which on it may be removed, unless a part arrives."""
        return int(self.folder.stat().st_mtime + LEFTOVER_SECONDS)


def begin(root: Path, upload_id: str, announced: Announced) -> PartialUpload:
    """Make a place for the parts of a file below `root`."""
    folder = root / upload_id
    data = durable.canonical_json(asdict(announced))
    durable.write_bytes(folder / _ANNOUNCED, data, point="upload_parts.announced")
    return PartialUpload(upload_id, folder, announced, None)


def find(root: Path, upload_id: str, project: str) -> PartialUpload:
    """Return an upload of a project.

    Raises:
        UploadNotFound: There is none of that id, or it expired.
    """
    folder = root / upload_id
    try:
        announced = Announced(**json.loads((folder / _ANNOUNCED).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise UploadNotFound(upload_id) from None
    if announced.project != project:
        raise UploadNotFound(upload_id)
    outcome_path = folder / _OUTCOME
    outcome = Outcome(**json.loads(outcome_path.read_bytes())) if outcome_path.exists() else None
    return PartialUpload(upload_id, folder, announced, outcome)


def announced_bytes(root: Path, project: str) -> int:
    """Return how much the uploads of a project will hold that have not ended."""
    ids = [path.parent.name for path in root.glob(f"*/{_ANNOUNCED}")]
    found = []
    for upload_id in ids:
        with suppress(UploadNotFound):  # of another project, or ended meanwhile
            found.append(find(root, upload_id, project))
    return sum(upload.announced.size_bytes for upload in found if upload.outcome is None)


def parts_of(upload: PartialUpload) -> dict[str, int]:
    """Return the size in bytes of each part that has arrived, by its id."""
    return {
        f"{_PART_PREFIX}{path.name}": path.stat().st_size for path in sorted(_part_paths(upload))
    }


def add_part(upload: PartialUpload, received: Upload) -> str:
    """Keep a part durably and return its id; the same bytes are the same part.

    Raises:
        UploadEnded: It was completed or cancelled.
        UploadMismatch: All parts together would be larger than announced.
        InsufficientStorage: The disk is full.
    """
    require_pending(upload)
    store = BlobStore(upload.folder)
    if not store.exists(Blob(received.sha256, received.size_bytes)):
        whole_bytes = sum(parts_of(upload).values()) + received.size_bytes
        if whole_bytes > upload.announced.size_bytes:
            reason = f"{whole_bytes} bytes in parts, {upload.announced.size_bytes} were announced"
            raise UploadMismatch(upload.id, reason)
        store.put_file(received.path, received.sha256)
    os.utime(upload.folder)  # a new part keeps the folder from being swept
    return f"{_PART_PREFIX}{received.sha256}"


def assemble(
    upload: PartialUpload, part_ids: Sequence[str], target: Path, md5: str | None
) -> Upload:
    """Write the parts in this order to the new file `target`, for the caller to use and remove.

    Raises:
        UploadEnded: It was cancelled.
        UploadMismatch: A part is missing, or size or MD5 are not as announced.
        InsufficientStorage: The disk is full.
    """
    require_pending(upload)
    sizes = parts_of(upload)
    missing = [part for part in part_ids if part not in sizes]
    if missing:
        reason = f"{len(missing)} of its parts have not arrived, such as {missing[0][:80]!r}"
        raise UploadMismatch(upload.id, reason)
    whole_bytes = sum(sizes[part] for part in part_ids)
    if whole_bytes != upload.announced.size_bytes:
        reason = f"{whole_bytes} bytes in parts, {upload.announced.size_bytes} were announced"
        raise UploadMismatch(upload.id, reason)
    sha256, actual_md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with durable.needing_space("putting an upload together"), target.open("xb") as file:
        for chunk in _chunks(upload, part_ids):
            faults.reach("upload_parts.chunk")
            sha256.update(chunk)
            actual_md5.update(chunk)
            file.write(chunk)
    if md5 is not None and md5.lower() != actual_md5.hexdigest():
        raise UploadMismatch(upload.id, f"its MD5 is {actual_md5.hexdigest()}, not the given one")
    return Upload(target, sha256.hexdigest(), whole_bytes, upload.announced.file_name)


def end(upload: PartialUpload, outcome: Outcome) -> PartialUpload:
    """Remember how an upload ended and remove its parts."""
    data = durable.canonical_json(asdict(outcome))
    durable.write_bytes(upload.folder / _OUTCOME, data, point="upload_parts.outcome")
    for folder in {path.parent for path in _part_paths(upload)}:
        shutil.rmtree(folder, ignore_errors=True)
    return PartialUpload(upload.id, upload.folder, upload.announced, outcome)


def require_pending(upload: PartialUpload) -> None:
    """Raise `UploadEnded` unless the upload still takes parts."""
    if upload.outcome is not None:
        raise UploadEnded(upload.id, upload.outcome.status)


def _part_paths(upload: PartialUpload) -> Iterator[Path]:
    """Yield the files of the parts; a blob store has two hex digits of fan-out."""
    return (path for path in upload.folder.glob("??/*") if _PART_ID.fullmatch(f"part_{path.name}"))


def _chunks(upload: PartialUpload, part_ids: Sequence[str]) -> Iterator[bytes]:
    store = BlobStore(upload.folder)
    for part_id in part_ids:
        with store.open(part_id.removeprefix(_PART_PREFIX)) as part:
            while chunk := part.read(_CHUNK_BYTES):
                yield chunk
