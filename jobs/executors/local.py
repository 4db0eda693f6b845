"""Attempts as processes of this machine: training forked from a warm server, the rest afresh.

Everything started here dies with this process (`jobs.processes`), so that no attempt can be taken
over: a worker that comes back starts its jobs again. An attempt has ended only when its process is
reaped and its group killed; then its slot, and its memory, are free.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import forkserver, processes
from jobs.executors.protocol import (
    LOG_FILE_NAME,
    AttemptKind,
    AttemptSpec,
    Ended,
    Exited,
    Handle,
    Lost,
    Poll,
    Running,
)
from jobs.executors.warm import WarmServer

#: Module that does an attempt of this kind: `python -m MODULE SPEC`.
DEFAULT_MODULES: Mapping[AttemptKind, str] = {
    "ingest": "jobs.datasets.ingest",
    "download": "jobs.download",
}

#: Read by C libraries when they are loaded, hence set before the server imports anything.
TRAINING_ENVIRONMENT: Mapping[str, str] = {
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: serving p50 116-129 ms, else 394, 2 cores
    "OPENBLAS_NUM_THREADS": "1",  # numpy's: else importing it starts a thread before the fork
    # Freed activations stay in the process. A step of mobilenet_v2 at batch 16 otherwise takes
    # 140,000 page faults and 0.8 s instead of 0.5 s (2 cores, glibc 2.36).
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # products on a GPU add up in one order
}

_CLOSE_SECONDS = 2.0  # until a fork server that was told to end is killed
_KILLING_SECONDS = 0.05  # between two looks at an attempt that is being killed
_SERVER_SECONDS = 1.0  # for a fork server to tell that a killed child ended, before it is killed


class _Fresh:
    """An attempt in a process that we started and reap."""

    def __init__(self, process: processes.ProcessHandle) -> None:
        self.process = process

    def ended(self, cancelled: bool) -> Ended | None:
        status = self.process.reap()
        return None if status is None else _exited(status, cancelled)

    def kill(self, _overdue_seconds: float) -> None:
        self.process.kill_group(signal.SIGKILL)

    def watched(self) -> list[int]:
        return [self.process.fileno()]

    def close(self) -> None:
        self.process.close()


class _Forked:
    """An attempt in a child of a fork server, which reaps it and tells us."""

    def __init__(self, server: WarmServer, identity: int) -> None:
        self.server = server
        self._identity = identity

    @property
    def process(self) -> processes.ProcessHandle | None:
        return self.server.child(self._identity).process

    def ended(self, cancelled: bool) -> Ended | None:
        self.server.pump()
        child = self.server.child(self._identity)
        if child.status is not None:
            return _exited(child.status, cancelled)
        if child.refused is not None:
            return Lost(child.refused)
        if cancelled and self.server.withdraw(self._identity):
            return Exited(None, None, killed_by_us=True)
        return self._ended_with_server(child.process, cancelled) if self.server.dead else None

    def _ended_with_server(
        self, process: processes.ProcessHandle | None, cancelled: bool
    ) -> Ended | None:
        if process is not None:
            process.kill_group(signal.SIGKILL)  # the kernel did; this takes what it started along
            if process.alive():
                return None
        status = self.server.status
        assert status is not None
        if status > 0 and not self.server.ready:
            return _exited(status, cancelled)  # an import failed: no other attempt would do better
        return Lost(f"the fork server died (status {status})")

    def kill(self, overdue_seconds: float) -> None:
        process = self.process
        if process is not None:
            process.kill_group(signal.SIGKILL)
        if overdue_seconds > _SERVER_SECONDS:
            self.server.kill()  # it hangs, or is stopped

    def watched(self) -> list[int]:
        process = self.process
        if self.server.dead:
            return [] if process is None else [process.fileno()]
        return [self.server.fileno(), self.server.process.fileno()]

    def close(self) -> None:
        self.server.forget(self._identity)


@dataclass(slots=True, eq=False)
class _Live:
    """An attempt that has not ended.

    Args:
        handle: What the worker holds.
        where: The process that does it.
        kill_at: When it is killed (`time.monotonic`); None if nobody cancelled it.
        asked: SIGTERM was delivered.
    """

    handle: Handle
    where: _Fresh | _Forked
    kill_at: float | None = None
    asked: bool = False


class LocalExecutor:
    """Runs attempts on this machine; used from the main thread of the worker.

    Args:
        environment: All environment variables of the processes; the training ones are added.
        nice: Added to the niceness of attempts, so that serving comes first.
        target: What a train attempt does in its fork: `module:function` of the spec's path.
        preload: Modules that the fork server imports.
        modules: Module that does each other kind of attempt.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        nice: int = 10,
        target: str = forkserver.DEFAULT_TARGET,
        preload: Sequence[str] = forkserver.DEFAULT_PRELOAD,
        modules: Mapping[AttemptKind, str] = DEFAULT_MODULES,
    ) -> None:
        # Children find the modules that this process finds, whatever folder it was started in.
        paths = os.pathsep.join(path for path in sys.path if path)
        self._environment = {**environment, "PYTHONPATH": paths}
        self._nice = nice
        self._target = target
        self._preload = tuple(preload)
        self._modules = dict(modules)
        self._server: WarmServer | None = None
        self._live: dict[str, _Live] = {}
        self._started = 0

    def warm(self) -> None:
        """Start the fork server if none runs, so that the next train attempt starts at once."""
        self._running_server()

    @property
    def is_warm(self) -> bool:
        """Whether a fork server has imported everything and waits."""
        if self._server is None:
            return False
        self._server.pump()
        return self._server.ready and not self._server.dead

    @property
    def server_pid(self) -> int | None:
        """Number of the fork server's process, None if none was started."""
        return None if self._server is None else self._server.process.pid

    def start(self, attempt: AttemptSpec) -> Handle:
        """Start an attempt; a train attempt waits for the fork server without blocking us."""
        where = self._fork(attempt) if attempt.kind == "train" else self._spawn(attempt)
        self._started += 1
        handle = Handle(attempt, token=str(self._started))
        self._live[handle.token] = _Live(handle, where)
        return handle

    def poll(self, handle: Handle) -> Poll:
        """Tell how an attempt is; deliver its cancel, kill it when its grace is over, reap it."""
        if handle.ended is not None:
            return handle.ended
        live = self._live[handle.token]
        ended = live.where.ended(cancelled=live.kill_at is not None)
        if ended is None:
            self._press(live)
            process = live.where.process
            return Running(None if process is None else process.pid)
        self._end(live, ended)
        return ended

    def cancel(self, handle: Handle, grace_seconds: float) -> None:
        """Send SIGTERM to the attempt's group, and SIGKILL after the grace, while it is polled."""
        if handle.ended is not None:
            return
        live = self._live[handle.token]
        kill_at = time.monotonic() + grace_seconds
        live.kill_at = kill_at if live.kill_at is None else min(live.kill_at, kill_at)
        self._press(live)

    def wait(self, timeout_seconds: float) -> None:
        """Sleep until an attempt's process or fork server has something to tell, or one is due."""
        now = time.monotonic()
        watched = select.poll()
        for live in self._live.values():
            for descriptor in live.where.watched():
                watched.register(descriptor, select.POLLIN)
            if live.kill_at is not None:
                due_seconds = max(live.kill_at - now, _KILLING_SECONDS)
                timeout_seconds = min(timeout_seconds, due_seconds)
        watched.poll(max(0.0, timeout_seconds) * 1000)

    def reattach(self, attempt: AttemptSpec, token: str) -> Handle | None:
        """Return None: an attempt of this machine died with the worker that started it."""
        del attempt, token
        return None

    def close(self) -> None:
        """Kill every attempt and the fork server; returns when they are reaped."""
        for live in self._live.values():
            live.where.kill(0.0)
        for live in self._live.values():
            process = live.where.process
            if process is not None:
                process.wait(_CLOSE_SECONDS)
        if self._server is not None:
            self._server.close(_CLOSE_SECONDS)
            self._server = None
        for live in list(self._live.values()):
            if isinstance(live.where, _Fresh):
                live.where.process.reap()
            self._end(live, Exited(None, signal.SIGKILL, killed_by_us=True))

    def _fork(self, attempt: AttemptSpec) -> _Forked:
        server = self._running_server()
        log = _log_of(attempt)
        return _Forked(server, server.start(attempt.spec_path, log, self._nice))

    def _spawn(self, attempt: AttemptSpec) -> _Fresh:
        module = self._modules[attempt.kind]
        log = os.open(_log_of(attempt), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            command = [sys.executable, "-P", "-m", module, str(attempt.spec_path)]
            inherited = processes.Inherited(output=log, nice=self._nice)
            return _Fresh(processes.spawn(command, self._environment, inherited))
        finally:
            os.close(log)

    def _running_server(self) -> WarmServer:
        if self._server is not None:
            self._server.pump()
        if self._server is None or self._server.dead:
            environment = {**self._environment, **TRAINING_ENVIRONMENT}
            self._server = WarmServer(environment, self._target, self._preload)
        return self._server

    def _press(self, live: _Live) -> None:
        if live.kill_at is None:
            return
        process = live.where.process
        if process is not None and not live.asked:
            live.asked = process.kill_group(signal.SIGTERM)
        overdue_seconds = time.monotonic() - live.kill_at
        if overdue_seconds >= 0:
            live.where.kill(overdue_seconds)

    def _end(self, live: _Live, ended: Ended) -> None:
        live.handle.ended = ended
        live.where.close()
        del self._live[live.handle.token]


def _exited(status: int, cancelled: bool) -> Exited:
    if status < 0:
        return Exited(None, -status, killed_by_us=cancelled)
    return Exited(status, None, killed_by_us=cancelled)


def _log_of(attempt: AttemptSpec) -> Path:
    return attempt.attempt_folder / LOG_FILE_NAME
