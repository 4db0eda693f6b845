"""What a client asked for and what it was told: one JSON line per invocation and per answer.

As Jepsen's histories: an operation is invoked and then `ok` (acknowledged), `fail` (surely not
done) or `info` (nobody knows: a connection cut off, a 5xx). Written before and after each call, so
that a client that is killed leaves its history as well.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2

from service.client import Graft, GraftProblem, Json

Phase = Literal["invoke", "ok", "fail", "info"]

#: 507 says that nothing was kept, other 5xx may come after a commit.
_SURELY_NOT_DONE = frozenset({507})


@dataclass(frozen=True)
class Operation:
    """One line.

    Args:
        number: Of the invocation; its answer has the same.
        phase: `invoke`, or how it ended.
        name: `upload`, `submit`, `cancel`, ...
        key: The idempotency key; repeated invocations of one wish share it.
        resource: Id that was acknowledged, or that is acted upon.
        at_seconds: On a monotonic clock.
    """

    number: int
    phase: Phase
    name: str
    key: str
    resource: str | None
    at_seconds: float


class Unknown(Exception):
    """Nobody knows whether the call was done: repeat it with its key."""


class History:
    """Appends operations to a file; used from any thread.

    Args:
        path: The file; gone on with if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._last = len(read_history(path))

    def call(
        self, name: str, key: str, call: Callable[[], Any], resource: str | None = None
    ) -> Any:  # noqa: ANN401 - what the call returns
        """Make one call and record it.

        Raises:
            Unknown: The connection broke, or the answer was a 5xx that may come after a commit.
            GraftProblem: The service refused.
        """
        number = self._append(None, "invoke", name, key, resource)
        try:
            answer = call()
        except httpx2.TransportError as error:
            self._append(number, "info", name, key, resource)
            raise Unknown(name) from error
        except GraftProblem as problem:
            done = problem.status < 500 or problem.status in _SURELY_NOT_DONE
            self._append(number, "fail" if done else "info", name, key, resource)
            if done:
                raise
            raise Unknown(f"{name}: {problem}") from problem
        made = answer["id"] if isinstance(answer, dict) and "id" in answer else resource
        self._append(number, "ok", name, key, made)
        return answer

    def _append(
        self, number: int | None, phase: Phase, name: str, key: str, resource: str | None
    ) -> int:
        with self._lock:
            if number is None:
                self._last += 1
                number = self._last
            line = [number, phase, name, key, resource, time.monotonic()]
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return number


class PatientClient:
    """A client that repeats what nobody knows the end of, with the same key, and records it all.

    Args:
        graft: The connection.
        history: Where calls are recorded.
        patience_seconds: For so long one wish is repeated.
    """

    def __init__(self, graft: Graft, history: History, patience_seconds: float = 60.0) -> None:
        self.graft = graft
        self._history = history
        self._patience_seconds = patience_seconds

    def upload(self, archive: Path, key: str, **options: object) -> Json:
        """Upload a data set; returns what was acknowledged."""
        answer: Json = self._wish(
            "upload",
            key,
            lambda: self.graft.upload(
                archive,
                idempotency_key=key,
                **options,  # type: ignore[arg-type]
            ),
        )
        return answer

    def submit(self, dataset_id: str, key: str, **fields: object) -> Json:
        """Ask for a job."""
        answer: Json = self._wish(
            "submit", key, lambda: self.graft.submit(dataset_id, idempotency_key=key, **fields)
        )
        return answer

    def act(self, job_id: str, action: str) -> Json:
        """Cancel, pause, resume or retry a job; each can be repeated."""
        key = f"{action} {job_id}"
        answer: Json = self._wish(action, key, lambda: self.graft.act(job_id, action), job_id)
        return answer

    def wish(self, name: str, key: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Do anything else that may be repeated."""
        return self._wish(name, key, call)

    def remove(self, name: str, resource: str, call: Callable[[], None]) -> None:
        """Delete; that nothing is there when the call is repeated is what was wanted."""
        try:
            self._wish(name, f"{name} {resource}", call, resource)
        except GraftProblem as problem:
            if problem.status != 404:
                raise

    def _wish(
        self, name: str, key: str, call: Callable[[], Any], resource: str | None = None
    ) -> Any:  # noqa: ANN401
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return self._history.call(name, key, call, resource)
            except Unknown:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            except GraftProblem as problem:
                if problem.status != 507 or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def read_history(path: Path) -> list[Operation]:
    """Return the whole lines of a history; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [Operation(*json.loads(line)) for line in lines]


@contextmanager
def recorded(graft: Graft, path: Path) -> Iterator[PatientClient]:
    """Yield a patient client that records into `path`."""
    yield PatientClient(graft, History(path))
