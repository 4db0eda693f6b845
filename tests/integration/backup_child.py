"""A backup or a restore in a process that a test may let die at a named point.

python -m tests.integration.backup_child backup|restore FAULTS DATA_FOLDER DATABASE_URL BACKUP
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jobs.backup.folder import BackupFolder
from jobs.backup.restore import restore_backup
from jobs.backup.take import Source, take_backup
from jobs.store.database import Database
from models_cache import faults


def main(what: str, plan: str, data_folder: Path, url: str, root: Path) -> None:
    faults.arm(plan, Path(tempfile.mkdtemp()))
    database = Database(url)
    if what == "backup":
        take_backup(Source(database, data_folder, "test"), root)
    else:
        folder = BackupFolder.find(root)
        restore_backup(folder, folder.snapshot(), data_folder, database)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
