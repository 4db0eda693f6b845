"""A job's log as server-sent events: resumable by `Last-Event-ID`, closed by `event: end`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from jobs.errors import JobNotFound
from jobs.states import TERMINAL
from jobs.store import events, jobs
from jobs.store.database import DATABASE_AWAY, Database
from jobs.store.events import Event
from jobs.store.jobs import Job

HEARTBEAT_SECONDS = 15.0
_POLL_SECONDS = 0.2
_AWAY_SECONDS = 1.0
_PAGE = 500


async def stream_events(
    database: Database,
    job: Job,
    after_seq: int,
    is_gone: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Yield the events of a job behind `after_seq` as they are written, then `event: end`.

    Rows of the log have their `seq` as id, so that a client can go on where it was. `progress`
    events have no id: they are a view of the job's row and are not stored.
    """
    view = _View(after_seq)
    while not await is_gone():
        try:
            job, rows = await run_in_threadpool(_look, database, job, view.seen_seq)
        except JobNotFound:  # deleted while someone was listening
            yield format_sse_event(event="end", data_str="{}")
            return
        except DATABASE_AWAY:
            yield format_sse_event(comment="waiting for the database")
            await asyncio.sleep(_AWAY_SECONDS)
            continue
        for chunk in view.news(job, rows):
            yield chunk
        if view.is_complete(job):
            end = json.dumps({"status": job.status.value})
            yield format_sse_event(event="end", data_str=end)
            return
        if len(rows) < _PAGE:
            await asyncio.sleep(_POLL_SECONDS)


class _View:
    """What one listener has been sent."""

    def __init__(self, seen_seq: int) -> None:
        self.seen_seq = seen_seq
        self._progress: dict[str, Any] | None = None
        self._heard_at = time.monotonic()

    def news(self, job: Job, rows: list[Event]) -> Iterator[bytes]:
        """Yield what the listener has not seen, or a comment when it was silent for long."""
        silent = not rows
        for row in rows:
            self.seen_seq = row.seq
            yield _format(row)
        if job.progress is not None and job.progress != self._progress:
            self._progress = job.progress
            silent = False
            yield format_sse_event(event="progress", data_str=json.dumps(job.progress))
        now = time.monotonic()
        if silent and now - self._heard_at <= HEARTBEAT_SECONDS:
            return
        if silent:
            yield format_sse_event(comment="still here")
        self._heard_at = now

    def is_complete(self, job: Job) -> bool:
        """Tell whether the job has ended and every row of its log was sent."""
        return job.status in TERMINAL and self.seen_seq >= job.event_seq


def _look(database: Database, job: Job, after_seq: int) -> tuple[Job, list[Event]]:
    with database.read() as connection:
        now = jobs.get(connection, job.id, job.project)
        return now, events.page(connection, job.id, after_seq, _PAGE)


def _format(row: Event) -> bytes:
    data = {"seq": row.seq, "kind": row.kind, "data": row.data, "at": row.at.isoformat()}
    return format_sse_event(event=row.kind, id=str(row.seq), data_str=json.dumps(data))
