"""Writes the images and metadata of an archive into a folder, under numbers, with their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jobs.datasets.archive import ArchiveEntry, read_archive
from jobs.datasets.layout import Label, is_image_name, is_junk, is_metadata_name
from jobs.datasets.limits import IngestLimits
from jobs.datasets.report import Report
from models_cache.decode import SNIFF_BYTES, sniff_format
from models_cache.durable import raise_if_full


@dataclass(frozen=True)
class UnpackedFile:
    """A file of an upload, outside of its archive.

    Args:
        name: In the archive.
        path: Where its bytes are now; the name has no part in it.
        sha256: Of its bytes.
        size_bytes: Of its bytes.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int


@dataclass
class Unpacked:
    """What an archive held.

    Args:
        images: Files that are, or promise by their name to be, images; by name.
        metadata: Files that may say labels; by name.
        files: How many files there were at all.
        labels: By name, where the upload itself says them; None: names and metadata do.
        several: Whether such a label is any number of them, joined by `|`.
    """

    images: dict[str, UnpackedFile] = field(default_factory=dict)
    metadata: dict[str, UnpackedFile] = field(default_factory=dict)
    files: int = 0
    labels: dict[str, Label] | None = None
    several: bool = False


def unpack(
    archive: Path,
    folder: Path,
    limits: IngestLimits,
    report: Report,
    advanced: Callable[[int], None],
) -> Unpacked:
    """Unpack what matters of an archive; the rest is read, checked and told as ignored.

    Args:
        archive: The uploaded file.
        folder: An empty folder; gets files `0`, `1`, ...
        limits: What the archive may hold.
        report: Gets the ignored files.
        advanced: Called with the bytes unpacked so far.

    Raises:
        DatasetError: The archive is refused; the folder's content is to be thrown away.
        InsufficientStorage: The disk is full.
    """
    unpacked = Unpacked()
    done_bytes = 0
    for entry, content in read_archive(archive, limits):
        unpacked.files += 1
        done_bytes += entry.size_bytes
        if is_junk(entry.name):
            report.ignored(entry.name, "system-file")
            continue
        start = next(content, b"")
        if is_metadata_name(entry.name):
            kept = unpacked.metadata
        elif is_image_name(entry.name) or sniff_format(start[:SNIFF_BYTES]) is not None:
            kept = unpacked.images
        else:
            report.ignored(entry.name, "not-an-image")
            for _ in content:
                pass  # to the end: there its checksum is compared
            continue
        target = folder / str(len(unpacked.images) + len(unpacked.metadata))
        kept[entry.name] = _written(entry, target, start, content)
        advanced(done_bytes)
    return unpacked


def _written(
    entry: ArchiveEntry, path: Path, start: bytes, content: Iterator[bytes]
) -> UnpackedFile:
    digest = hashlib.sha256(start)
    try:
        with path.open("xb") as file:
            file.write(start)
            for chunk in content:
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise_if_full(error, "unpacking the upload")
        raise
    return UnpackedFile(entry.name, path, digest.hexdigest(), entry.size_bytes)
