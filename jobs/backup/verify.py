"""Reads every file of a backup again and compares it with its name."""

from __future__ import annotations

from jobs.backup.errors import BackupDamaged
from jobs.backup.folder import BackupFolder, Snapshot
from jobs.backup.take import Report
from models_cache import durable


def verify_backup(
    folder: BackupFolder,
    snapshot: Snapshot,
    report: Report = lambda _what, _done, _total: None,
) -> None:
    """Hash every file that a backup needs; nothing is changed.

    Raises:
        BackupDamaged: Files are missing or changed.
    """
    bad = []
    done_bytes, total_bytes = 0, snapshot.size_bytes
    for blob in snapshot.contents():
        path = folder.blobs.local_path(blob.sha256)
        if not folder.blobs.exists(blob) or durable.sha256_of_file(path) != blob.sha256:
            bad.append(blob.sha256)
        done_bytes += blob.size_bytes
        report("hashes", done_bytes, total_bytes)
    if bad:
        raise BackupDamaged(snapshot.id, len(bad), bad[0])
