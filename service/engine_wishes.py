"""Faster engines for what is served: queued as jobs when serving says that one is missing.

Trainings queue the engine of their own backbone; this is for models that came otherwise, as by
import, or whose engine was deleted.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.concurrency import run_in_threadpool

from jobs import engine_builds
from jobs.store.database import DATABASE_AWAY, Database
from models_cache.durable import canonical_json

log = logging.getLogger(__name__)


class EngineWishes:
    """Queues each build once per process; whether it is needed, the queue and the job say.

    Args:
        database: Where jobs are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._heard: set[bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, spec: dict[str, Any] | None, project: str) -> None:
        """Take what an answer of inference says is missing, if anything; returns at once."""
        if spec is None or (wish := canonical_json(spec)) in self._heard:
            return
        self._heard.add(wish)
        task = asyncio.create_task(self._queue(spec, project, wish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is being written."""
        await asyncio.gather(*self._tasks)

    async def _queue(self, spec: dict[str, Any], project: str, wish: bytes) -> None:
        try:
            await run_in_threadpool(self._write, spec, project)
        except DATABASE_AWAY as error:  # the next one to load the backbone says it again
            self._heard.discard(wish)
            log.warning("the building of an engine could not be queued: %s", error)

    def _write(self, spec: dict[str, Any], project: str) -> None:
        with self._database.write("engine_wish") as connection:
            engine_builds.queue(connection, spec, project)
