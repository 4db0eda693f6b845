"""Which version a reference means now: remembered for as long as nobody commits anything.

A prediction asks this every time, and its statements cost more than all else that the api does for
it. The database tells for much less whether any other connection, of whatever process, has
committed since it was asked last (`jobs.store.last_commit`): while none has, what was read is still
true. A promotion is therefore seen by the first request behind it, as without the memory.
"""

from __future__ import annotations

import asyncio

from starlette.concurrency import run_in_threadpool

from jobs.store import models
from jobs.store.database import Database
from jobs.store.last_commit import Commit
from jobs.store.models import Version

_MOST_REMEMBERED = 4096
_MOST_CLASSES = 1000  # of a version that is remembered: names of more are not for keeping


class VersionFinder:
    """Finds versions by reference.

    Args:
        database: Where models are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[tuple[str, str], Version] = {}
        self._as_of: Commit = None  # what `_remembered` is true of
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
        as_of = await self._last_commit()
        if as_of is None or as_of != self._as_of:
            self._remembered, self._as_of = {}, as_of
        elif (known := self._remembered.get((project, reference))) is not None:
            return known
        remembered = self._remembered
        version = await run_in_threadpool(self.read, reference, project)
        # Read behind `as_of`: at least as new. If it is newer, so is the next `last_commit`
        if as_of is not None and len(version.classes) <= _MOST_CLASSES:
            if len(remembered) >= _MOST_REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[project, reference] = version
        return version

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
