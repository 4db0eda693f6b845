"""Which version a reference means now: remembered for as long as no model changes.

A prediction asks this every time, and its statements cost more than all else that the api does for
it. The database tells for much less whether any other connection, of whatever process, has
committed since it was asked last (`jobs.store.last_commit`): while none has, what was read is still
true. If one has, perhaps by a heartbeat, a number tells whether models changed. A promotion is
therefore seen by the first request behind it, as without the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from jobs.errors import ModelNotFound, VersionNotFound
from jobs.store import models
from jobs.store.database import Database
from jobs.store.last_commit import Commit
from jobs.store.models import Version

_MOST_REMEMBERED = 4096
_MOST_CLASSES = 1000  # of a version that is remembered: names of more are not for keeping

_Key = tuple[str, str]  # project and reference


class VersionFinder:
    """Finds versions by reference; requests that ask the same at once share one look.

    Args:
        database: Where models are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._as_of: Commit = None
        self._changes = 0  # read behind it: what the following is true of
        self._remembered: dict[_Key, Version] = {}
        self._absent: set[_Key] = set()
        self._reading: dict[_Key, asyncio.Task[Version]] = {}
        self._asking: asyncio.Task[Commit] | None = None  # a server

    def read(self, reference: str, project: str) -> Version:
        """Return the version that `name`, `name@alias` or `name@number` means; blocks.

        Raises:
            ModelNotFound, VersionNotFound: It means none.
        """
        name, _, alias = reference.partition("@")
        with self._database.read() as connection:
            return models.resolve(connection, name, alias or None, project)

    async def find(self, reference: str, project: str) -> Version:
        """Return what `read` would, from memory if nothing was committed; in the event loop only.

        Raises:
            ModelNotFound, VersionNotFound: It means none.
        """
        if not await self._is_as_of_now():
            return await run_in_threadpool(self.read, reference, project)
        key = project, reference
        if (known := self._remembered.get(key)) is not None:
            return known
        reading = self._reading.get(key)
        if reading is None:
            again = self._read_and_remember(key, self._remembered)
            reading = self._reading[key] = asyncio.create_task(again)
            reading.add_done_callback(_forgotten(self._reading, key))
        return await asyncio.shield(reading)  # a client that hangs up takes it from nobody

    async def find_if_any(self, reference: str, project: str) -> Version | None:
        """As `find`, but None if it means none; for references to models that there are."""
        key = project, reference
        if await self._is_as_of_now() and key in self._absent:
            return None
        absent = self._absent
        try:
            return await self.find(reference, project)
        except (ModelNotFound, VersionNotFound):
            absent.add(key)
            return None

    async def _is_as_of_now(self) -> bool:
        """Forget what a commit may have changed; tell whether anything may be remembered."""
        as_of = await self._last_commit()
        if as_of is None:
            return False
        if as_of != self._as_of:
            changes = await run_in_threadpool(self._read_changes)
            if changes != self._changes:
                self._changes = changes
                self._remembered, self._absent, self._reading = {}, set(), {}
            self._as_of = as_of
        return True

    def _read_changes(self) -> int:
        with self._database.read() as connection:
            return models.changes(connection)

    async def _last_commit(self) -> Commit:
        """Ask the database; a server in a thread, and once for all that wait for its answer."""
        if self._database.is_sqlite:
            return self._database.last_commit()
        earlier = self._asking
        if earlier is not None and not earlier.done():
            await asyncio.wait([earlier])  # asked before we came: its answer may be too old for us
        if self._asking is earlier:
            self._asking = asyncio.create_task(run_in_threadpool(self._database.last_commit))
        assert self._asking is not None
        return await asyncio.shield(self._asking)

    async def _read_and_remember(self, key: _Key, remembered: dict[_Key, Version]) -> Version:
        project, reference = key
        version = await run_in_threadpool(self.read, reference, project)
        # Read behind `_changes`: at least as new. If it is newer, so are the next ones
        if len(version.classes) <= _MOST_CLASSES:
            if len(remembered) >= _MOST_REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[key] = version
        return version


def _forgotten(
    reading: dict[_Key, asyncio.Task[Version]], key: _Key
) -> Callable[[asyncio.Task[Version]], None]:
    """Return what takes a task that has ended off the list; its error is for those who wait."""

    def forget(task: asyncio.Task[Version]) -> None:
        del reading[key]
        if not task.cancelled():
            task.exception()  # nobody may wait any more: then asyncio would log it

    return forget
