"""Which blobs rows point to: what a backup has to hold and a collection has to leave.

Two readings. To keep: whatever looks like the name of a blob, in any column of any row, and the
images of each manifest among them. A column that is added later is covered without a word here;
a text that only looks like a name keeps a file too many, which does no harm. To miss: what the code
will open for sure, so that a file that is gone can be told with the row that needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from jobs.store import rows
from jobs.store.tables import datasets, feedback, jobs, model_versions
from models_cache.blobs import Blob, BlobStore
from models_cache.errors import BlobCorrupt, BlobMissing

_NAME = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
IMAGES = "images"
#: The log tells of the past and keeps nothing alive.
_TELLS_ONLY = frozenset({"job_events"})


@dataclass(frozen=True)
class Owner:
    """A row and the files that it needs.

    Args:
        kind: `dataset` (archive and reports), `images` (of a data set, with the manifest),
            `version`, `feedback` or `export`.
        id: What people call it.
        sha256s: Names of its blobs.
    """

    kind: str
    id: str
    sha256s: frozenset[str]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def names_in(table: str, row: Iterable[Any]) -> set[str]:
    """Return whatever could be the name of a blob in a row of a table."""
    if table in _TELLS_ONLY:
        return set()
    texts = (value if isinstance(value, str) else json.dumps(value) for value in row if value)
    return {name for text in texts for name in _NAME.findall(text)}


def names_in_rows(connection: Connection) -> set[str]:
    """Return whatever could be the name of a blob in any row."""
    found: set[str] = set()
    for table in rows.tables_of(connection):
        if table.name not in _TELLS_ONLY:
            for row in rows.read_rows(connection, table):
                found |= names_in(table.name, row)
    return found


def images_of_all(connection: Connection, blobs: BlobStore) -> set[str]:
    """Return the names of the images of all data sets."""
    column = datasets.c.manifest_sha256
    found: set[str] = set()
    for sha256 in connection.scalars(select(column).where(column.is_not(None)).distinct()):
        found |= _images(blobs, sha256)
    return found


def owners(connection: Connection, blobs: BlobStore) -> Iterator[Owner]:
    """Yield every row that needs files, with their names; manifests are read."""
    for row in connection.execute(select(datasets).order_by(datasets.c.id)):
        columns = (row.archive_sha256, row.report_sha256, row.examined_sha256)
        yield Owner("dataset", row.id, frozenset(name for name in columns if name))
        if row.manifest_sha256:
            images = {row.manifest_sha256} | _images(blobs, row.manifest_sha256)
            yield Owner(IMAGES, row.id, frozenset(images))
    for row in connection.execute(select(model_versions)):
        names = {file["sha256"] for file in row.files.values()} | {row.artifact_digest}
        names |= {row.evaluation_sha256} if row.evaluation_sha256 else set()
        yield Owner("version", f"{row.project}/{row.name}@{row.version}", frozenset(names))
    for row in connection.execute(select(feedback).order_by(feedback.c.id)):
        yield Owner("feedback", row.id, frozenset({row.image_sha256}))
    exported = select(jobs.c.id, jobs.c.result).where(
        jobs.c.type == "export", jobs.c.status == "succeeded"
    )
    for row in connection.execute(exported):
        yield Owner("export", row.id, frozenset({row.result["file"]["sha256"]}))


def missing_files(
    connection: Connection, blobs: BlobStore, present: Mapping[str, int]
) -> dict[Owner, list[str]]:
    """Return the rows that need files which are not there, with the names of those.

    Args:
        connection: In any transaction.
        blobs: Where manifests are read.
        present: By the name of each blob that is there.
    """
    absent = {owner: sorted(owner.sha256s - present.keys()) for owner in owners(connection, blobs)}
    return {owner: names for owner, names in absent.items() if names}


def _images(blobs: BlobStore, manifest_sha256: str) -> set[str]:
    """Return the names of the images of a manifest; none of one that cannot be read."""
    try:
        manifest = json.loads(blobs.read(manifest_sha256))
    except (BlobMissing, BlobCorrupt):
        return set()  # its own absence is told
    return {image["sha256"] for image in manifest["images"]}


def present_blobs(blobs: BlobStore) -> dict[str, int]:
    """Return the size of each blob that is there, by name."""
    return {file.sha256: file.size_bytes for file in blobs.listing() if file.sha256}


def as_blobs(names: Iterable[str], present: dict[str, int]) -> list[Blob]:
    """Return those of the names that are blobs that are there, by name."""
    return [Blob(name, present[name]) for name in sorted(names) if name in present]
