"""Which version a reference means now: remembered for as long as nobody commits anything.

A prediction asks this every time, and its statements cost more than all else that the api does for
it. SQLite tells in microseconds whether any other connection, of whatever process, has committed
since it was asked last (`PRAGMA data_version`): while none has, what was read is still true. A
promotion is therefore seen by the first request behind it, as without the memory. PostgreSQL has
nothing of the kind, and is asked every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from jobs.errors import ModelNotFound, VersionNotFound
from jobs.store import models
from jobs.store.database import Database
from jobs.store.models import Version

_MOST_REMEMBERED = 4096
_MOST_CLASSES = 1000  # of a version that is remembered: names of more are not for keeping


class VersionFinder:
    """Finds versions by reference; requests that ask the same at once share one look.

    Args:
        database: Where models are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._as_of: int | None = None  # the commit that the following is true of
        self._remembered: dict[str, Version] = {}
        self._absent: set[str] = set()
        self._reading: dict[str, asyncio.Task[Version]] = {}

    def read(self, reference: str) -> Version:
        """Return the version that `name`, `name@alias` or `name@number` means; blocks.

        Raises:
            ModelNotFound, VersionNotFound: It means none.
        """
        name, _, alias = reference.partition("@")
        with self._database.read() as connection:
            return models.resolve(connection, name, alias or None)

    async def find(self, reference: str) -> Version:
        """Return what `read` would, from memory if nothing was committed; in the event loop only.

        Raises:
            ModelNotFound, VersionNotFound: It means none.
        """
        if not self._is_as_of_now():
            return await run_in_threadpool(self.read, reference)
        if (known := self._remembered.get(reference)) is not None:
            return known
        reading = self._reading.get(reference)
        if reading is None:
            again = self._read_and_remember(reference, self._remembered)
            reading = self._reading[reference] = asyncio.create_task(again)
            reading.add_done_callback(_forgotten(self._reading, reference))
        return await asyncio.shield(reading)  # a client that hangs up takes it from nobody

    async def find_if_any(self, reference: str) -> Version | None:
        """As `find`, but None if it means none; for references to models that there are."""
        if self._is_as_of_now() and reference in self._absent:
            return None
        absent = self._absent
        try:
            return await self.find(reference)
        except (ModelNotFound, VersionNotFound):
            absent.add(reference)
            return None

    def _is_as_of_now(self) -> bool:
        """Forget what a commit may have changed; tell whether anything may be remembered."""
        as_of = self._database.last_commit()
        if as_of is None or as_of != self._as_of:
            self._as_of = as_of
            self._remembered, self._absent, self._reading = {}, set(), {}
        return as_of is not None

    async def _read_and_remember(self, reference: str, remembered: dict[str, Version]) -> Version:
        version = await run_in_threadpool(self.read, reference)
        # Read behind `_as_of`: at least as new. If it is newer, so is the next `last_commit`
        if len(version.classes) <= _MOST_CLASSES:
            if len(remembered) >= _MOST_REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[reference] = version
        return version


def _forgotten(
    reading: dict[str, asyncio.Task[Version]], reference: str
) -> Callable[[asyncio.Task[Version]], None]:
    """Return what takes a task that has ended off the list; its error is for those who wait."""

    def forget(task: asyncio.Task[Version]) -> None:
        del reading[reference]
        if not task.cancelled():
            task.exception()  # nobody may wait any more: then asyncio would log it

    return forget
