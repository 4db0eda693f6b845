"""Errors of backup, restore and the collection of garbage.

* BackupError                    a copy cannot be made, trusted or brought back
  + BackupTargetInvalid, BackupRunning, BackupMissing, BackupDamaged, BackupTooNew, NothingToBackUp,
    RestoreTargetUsed, RestoreUnfinished, DatabaseInUse
  x CollectionError              what looks like garbage is not removed
    + CollectionBusy, CollectionRefused, CollectionBlind
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class BackupError(GraftError):
    """A copy of the service cannot be made, trusted or brought back."""

    code = "backup-error"


@leaf
class BackupTargetInvalid(BackupError):
    """The folder cannot hold a backup."""

    code = "backup-target-invalid"
    sentence = "{path} cannot hold a backup: {reason}; name a folder that is empty or a backup"
    path: str
    reason: str


@leaf
class BackupRunning(BackupError):
    """Two backups must not write into one folder."""

    code = "backup-running"
    sentence = "another backup is being written into {path}; wait for its end"
    path: str


@leaf
class NothingToBackUp(BackupError):
    """The database has no tables."""

    code = "nothing-to-back-up"
    sentence = "the database has no tables; is GRAFT_DATABASE_URL or GRAFT_DATA_DIR the service's?"


@leaf
class BackupMissing(BackupError):
    """There is no complete backup of that name."""

    code = "backup-missing"
    sentence = "{path} has no complete backup ({incomplete} unfinished); run `graft backup --to`"
    path: str
    incomplete: int


@leaf
class BackupDamaged(BackupError):
    """Files of a backup are not what its manifest says."""

    code = "backup-damaged"
    sentence = (
        "{files} files of the backup {snapshot} are missing or changed, the first is {first}; "
        "use an older backup, or back up into another folder"
    )
    snapshot: str
    files: int
    first: str


@leaf
class BackupTooNew(BackupError):
    """The backup was made by a later version of Graft."""

    code = "backup-too-new"
    sentence = "the backup has tables of version {revision}, unknown here; restore with that Graft"
    revision: str


@leaf
class RestoreTargetUsed(BackupError):
    """A restore never writes over anything."""

    code = "restore-target-used"
    sentence = "{what} is in use or not empty; restore into an empty folder and database"
    what: str


@leaf
class RestoreUnfinished(BackupError):
    """A restore was interrupted: the data folder is not whole."""

    code = "restore-unfinished"
    sentence = "the restore into {path} was not finished; run the same `graft restore` again"
    path: str


@leaf
class DatabaseInUse(BackupError):
    """Rows that change while they are copied would be lost."""

    code = "database-in-use"
    sentence = "{workers} workers use the database; stop the service first, then copy"
    workers: int


class CollectionError(BackupError):
    """What looks like garbage is not removed."""

    code = "collection-error"


@leaf
class CollectionBusy(CollectionError):
    """Files must not go while a backup copies them, or another collection is at work."""

    code = "collection-busy"
    sentence = "a backup or another collection is using the data folder {path}; try again later"
    path: str


@leaf
class CollectionRefused(CollectionError):
    """The rows do not look like those of these files."""

    code = "collection-refused"
    sentence = (
        "of the files that rows point to {present} are here and {missing} are not, while {files} "
        "files would go: is GRAFT_DATABASE_URL the database of this data folder? If it is, add "
        "--force"
    )
    present: int
    missing: int
    files: int


@leaf
class CollectionBlind(CollectionError):
    """What a lost manifest names looks like garbage."""

    code = "collection-blind"
    sentence = (
        "the lists of images of {lists} data sets are gone or damaged, the first is {first}: which "
        "of {files} files are theirs cannot be told; bring the lists back from a backup, delete "
        "these data sets, or add --force"
    )
    lists: int
    first: str
    files: int
