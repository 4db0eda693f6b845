"""Removes garbage in the background of a worker, once in a while for all workers of a data folder.

In a thread of its own: with many files a look takes longer than a worker may be silent.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from jobs.garbage import collect
from jobs.store.database import Database
from jobs.worker_limits import Retention
from models_cache.errors import GraftError

log = logging.getLogger(__name__)

_STAMP = "collected"
_LONGEST_WAIT_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Collector:
    """A thread that collects when the last collection is longer ago than the interval.

    Args:
        database: Its rows.
        data_folder: Its files; when they were last collected is noted in it.
        kept: How long what is kept.
        interval_seconds: Between collections; 0 for none.
    """

    def __init__(
        self, database: Database, data_folder: Path, kept: Retention, interval_seconds: float
    ) -> None:
        self._database = database
        self._data_folder = data_folder
        self._kept = kept
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin; the first collection is an interval after the first start on a data folder."""
        if self._interval_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """End between two removals."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        wait_seconds = min(_LONGEST_WAIT_SECONDS, self._interval_seconds)
        while not self._stopping.wait(wait_seconds):
            try:
                if self._is_due():
                    self._collect()
            except (GraftError, OSError, SQLAlchemyError) as error:
                log.warning("garbage was not collected: %s", error)

    def _is_due(self) -> bool:
        stamp = self._data_folder / "run" / _STAMP
        try:
            last = stamp.stat().st_mtime
        except FileNotFoundError:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
            return False
        now = time.time()
        due = now - last >= self._interval_seconds or last > now  # the clock was set back
        if due:
            stamp.touch()
        return due

    def _collect(self) -> None:
        garbage, freed_bytes = collect(
            self._database,
            self._data_folder,
            self._kept,
            should_stop=self._stopping.is_set,
        )
        log.info(
            "collected %d files and folders, %d bytes, and %d figures",
            sum(1 for _ in garbage.items()),
            freed_bytes,
            garbage.figures,
        )
