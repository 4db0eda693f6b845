"""What leads from a request through its job and attempts to the child: ids in logs, and spans.

The first row of a job's log keeps where it came from (`origin`: `request_id`, and `traceparent`
where spans are collected). The worker opens a span per attempt below the request's; the child's
spec file carries both on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from models_cache import logs, tracing

if TYPE_CHECKING:  # children follow a trail, and need no database
    from jobs.store.jobs import Job

log = logging.getLogger(__name__)


def origin() -> dict[str, str]:
    """Return what a job that is accepted here is traced back to."""
    request_id = logs.facts().get("request_id")
    known = {} if request_id is None else {"request_id": str(request_id)}
    return {**known, **tracing.carrier()}


class Trail:
    """The trail of one attempt, in its worker.

    Args:
        job: As it was claimed.
        origin: Of the job.
    """

    def __init__(self, job: Job, origin: Mapping[str, str]) -> None:
        self._facts: dict[str, logs.Fact] = {"job_id": job.id, "attempt": job.attempt}
        if "request_id" in origin:
            self._facts["request_id"] = origin["request_id"]
        attributes: dict[str, str | int] = {"graft.job": job.id, "graft.attempt": job.attempt}
        parent = {name: value for name, value in origin.items() if name != "request_id"}
        self._kind = job.type
        self._span = tracing.OpenSpan(f"attempt {job.type}", parent, attributes)

    def for_child(self) -> dict[str, Any]:
        """Return what the child is to go on with, for its spec."""
        return {"facts": self._facts, "carrier": self._span.carrier}

    def about(self) -> AbstractContextManager[None]:
        """Have the lines of a block say which attempt they are about."""
        return logs.about(**self._facts)

    def begin(self) -> None:
        """Say that the attempt has begun."""
        with self.about():
            log.info("an attempt (%s) has begun", self._kind)

    def end(self) -> None:
        """Say that the attempt is over."""
        self._span.end()
        with self.about():
            log.info("an attempt (%s) is over", self._kind)


@contextmanager
def followed(spec: Mapping[str, Any]) -> Iterator[None]:
    """Log and trace a child's work as the worker that wrote the spec does; else in silence."""
    trail = spec.get("trail")
    if trail is None:
        yield
        return
    logs.begin(trail["log_format"], trail["log_level"])
    with (
        logs.about(**trail["facts"]),
        tracing.collected(trail["traces_url"], "graft-child", trail["version"]),
        tracing.span(str(spec["kind"]), trail["carrier"], {"graft.job": spec["job_id"]}),
    ):
        yield
