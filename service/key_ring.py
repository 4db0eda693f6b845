"""Who a key is: asked of the database now and then, and remembered for seconds in between.

A prediction would otherwise pay for a statement. What is remembered is the hash of a key that was
good, for `REMEMBERED_SECONDS`: so long may another process (`graft keys revoke`, a second api) have
revoked a key that still opens this one. What this process itself changes counts at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.concurrency import run_in_threadpool

from jobs.keys import Limits, Scope, sha256_of_key
from jobs.store import keys
from jobs.store.database import DATABASE_AWAY, Database, utc_now
from jobs.store.keys import ApiKey
from jobs.store.tables import DEFAULT_PROJECT
from service.callers import Caller

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 5.0
_MOST_REMEMBERED = 4096
_NOTED_USE = timedelta(seconds=60)  # a last use is written at most so often


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    until: float  # `time.monotonic`


class KeyRing:
    """Finds callers by key, and tells whether one is needed.

    Args:
        database: Where keys are.
        defaults: Limits of keys without own ones, and of callers without keys.
        now: What the time is; for tests.
    """

    def __init__(
        self, database: Database, defaults: Limits, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = database
        self._now = now
        self._defaults = defaults
        self._nobody = Caller(DEFAULT_PROJECT, Scope.ADMIN, defaults, None)
        self._known: dict[str, _Known] = {}
        self._keys_exist = False
        self._looked_at = -REMEMBERED_SECONDS
        self._notes: set[asyncio.Task[None]] = set()

    async def without_key(self) -> Caller | None:
        """Return who calls without a key: anybody until the first key is made, then nobody."""
        if not self._keys_exist and time.monotonic() - self._looked_at >= REMEMBERED_SECONDS:
            self._keys_exist = await run_in_threadpool(self.keys_exist)
            self._looked_at = time.monotonic()
        return None if self._keys_exist else self._nobody

    async def with_key(self, key: str) -> Caller | None:
        """Return whose a key is, or None if it opens nothing; in the event loop only."""
        sha256 = sha256_of_key(key)
        known = self._known.get(sha256)
        if known is not None and time.monotonic() < known.until:
            return known.caller
        remembered = self._known
        remembered.pop(sha256, None)
        found = await run_in_threadpool(self._read, sha256)
        if found is None:
            return None
        limits = found.limits.or_else(self._defaults)
        caller = Caller(found.project, found.scope, limits, found.id)
        if len(remembered) >= _MOST_REMEMBERED:
            del remembered[next(iter(remembered))]
        # If one was changed since the question, nobody looks here any more: see `forget`
        remembered[sha256] = _Known(caller, time.monotonic() + self._good_for(found, sha256))
        if found.last_used_at is None or self._now() - found.last_used_at >= _NOTED_USE:
            note = asyncio.create_task(self._note_use(found.id))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)
        return caller

    def keys_exist(self) -> bool:
        """Tell whether there ever was a key; blocks."""
        with self._database.read() as connection:
            return keys.exist(connection)

    def forget(self) -> None:
        """Ask the database for every key again: one was changed. From any thread."""
        self._known = {}

    async def close(self) -> None:
        """Wait for what is being written."""
        await asyncio.gather(*self._notes)

    def _read(self, sha256: str) -> ApiKey | None:
        with self._database.read() as connection:
            return keys.of_secret(connection, sha256, self._now())

    def _good_for(self, key: ApiKey, sha256: str) -> float:
        """Return for how many seconds a key may be remembered: not beyond its own end."""
        ends = [key.expires_at, key.previous_until if key.secret_sha256 != sha256 else None]
        left = [(end - self._now()).total_seconds() for end in ends if end is not None]
        return min([REMEMBERED_SECONDS, *left])

    async def _note_use(self, key_id: str) -> None:
        try:
            await run_in_threadpool(self._write_use, key_id)
        except DATABASE_AWAY as error:  # the next use writes it
            log.warning("the last use of a key could not be written: %s", error)

    def _write_use(self, key_id: str) -> None:
        with self._database.write("key_used") as connection:
            keys.note_use(connection, key_id, self._now())
