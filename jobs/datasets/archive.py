"""The one reader of uploaded archives: zip, tar and tar.gz, told apart by their first bytes.

HDF5 files are told apart here as well, and read in `array_unpack`.

Nothing is ever extracted to a path that the archive names. `quick_check` is what an upload has to
pass while its sender waits; `read_archive` checks everything again and gives the content.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from jobs.datasets.archive_stream import Budget, BudgetSpent, TarStream
from jobs.datasets.archive_tar import BLOCK_BYTES, is_header, walk_tar
from jobs.datasets.archive_zip import read_entry, walk_zip
from jobs.datasets.archive_zip_end import has_end_record
from jobs.datasets.errors import AmbiguousArchive, ArchiveTypeUnknown, EmptyDataset
from jobs.datasets.limits import IngestLimits

Kind = Literal["zip", "tar", "tar.gz", "hdf5"]

# Of a tar; each bound is under a second of one core at its worst: headers and nothing else, and
# deflate blocks that hold nothing.
_QUICK = Budget(unpacked_bytes=48 << 20, packed_bytes=12 << 20)
_GZIP_MAGIC = b"\x1f\x8b\x08"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_KNOWN_MAGICS = (
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x93NUMPY", "a single NumPy array"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"%PDF", "a PDF document"),
    (b"<", "an HTML or XML document"),
)


@dataclass(frozen=True)
class ArchiveEntry:
    """One file of an archive; folders are checked and not told.

    Args:
        name: Clean, with `/` between parts, in the archive's own spelling.
        size_bytes: Unpacked.
    """

    name: str
    size_bytes: int


def kind_of(file: BinaryIO) -> Kind:
    """Tell what a file is by its first bytes; its name and media type say nothing.

    Raises:
        ArchiveTypeUnknown: It is none of the archives that are accepted.
        AmbiguousArchive: It is something else with a zip behind it.
    """
    file.seek(0)
    start = file.read(BLOCK_BYTES)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(_GZIP_MAGIC):
        return "tar.gz"
    if is_header(start):
        return "tar"
    if start.startswith(_HDF5_MAGIC):
        return "hdf5"
    if has_end_record(file):
        raise AmbiguousArchive("it is a zip with something else before it")
    found = next((text for magic, text in _KNOWN_MAGICS if start.startswith(magic)), None)
    raise ArchiveTypeUnknown(found or ("no archive" if start else "empty"))


def quick_check(path: Path, limits: IngestLimits) -> Kind:
    """Check what can be checked of an upload in less than two seconds.

    A zip's whole structure and every name and size; of a tar the headers within the first
    48 MiB, or the first 12 MiB of a tar.gz as it was sent; of an HDF5 file nothing, since only a
    limited process may parse one. No content is kept.

    Args:
        path: The uploaded file.
        limits: What it may hold.

    Returns:
        What it is.

    Raises:
        ArchiveTypeUnknown: It is none of the archives that are accepted.
        ArchiveError: The leaf says which rule is broken and where.
        EmptyDataset: It holds no file at all.
    """
    with path.open("rb") as file:
        kind = kind_of(file)
        if kind == "hdf5":
            return kind
        if kind == "zip":
            if not walk_zip(file, limits):
                raise EmptyDataset(0)
            return kind
        with suppress(BudgetSpent):
            files = sum(1 for _ in walk_tar(_tar_stream(file, kind, limits, _QUICK), limits))
            if not files:
                raise EmptyDataset(0)
    return kind


def read_archive(
    path: Path, limits: IngestLimits
) -> Iterator[tuple[ArchiveEntry, Iterator[bytes]]]:
    """Yield every file of an archive with its content in chunks.

    The content of an entry has to be read before the next one is asked for; it is checked
    against its declared size and checksum when its last chunk is asked for.

    Args:
        path: The archive.
        limits: What it may hold.

    Raises:
        ArchiveTypeUnknown: It is none of the archives that are accepted.
        ArchiveError: The leaf says which rule is broken and where. Entries that were yielded
            before may be of a hostile archive: nothing of them is to be kept.
    """
    with path.open("rb") as file:
        kind = kind_of(file)
        if kind == "hdf5":
            raise ArchiveTypeUnknown("an HDF5 file")
        if kind == "zip":
            for zipped in walk_zip(file, limits):
                entry = ArchiveEntry(zipped.name, zipped.size_bytes)
                yield entry, read_entry(file, zipped)
            return
        for tarred, content in walk_tar(_tar_stream(file, kind, limits), limits):
            yield ArchiveEntry(tarred.name, tarred.size_bytes), content


def _tar_stream(
    file: BinaryIO, kind: Kind, limits: IngestLimits, budget: Budget | None = None
) -> TarStream:
    file.seek(0)
    stream = TarStream(file, limits, gzipped=kind == "tar.gz", budget=budget)
    if kind == "tar.gz":
        if not is_header(stream.read_exactly(BLOCK_BYTES)):
            raise ArchiveTypeUnknown("a gzip file without a tar in it")
        file.seek(0)
        stream = TarStream(file, limits, gzipped=True, budget=budget)
    return stream
