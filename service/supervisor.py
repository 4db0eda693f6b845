"""Starts api, inference and worker as processes, and starts them again when they die.

Small on purpose, since nothing watches it: no torch, no web framework, no state on disk. If it is
killed, the kernel kills the services, and they their children (`jobs.processes`).
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from jobs import processes

log = logging.getLogger(__name__)

STOP_ORDER = ("api", "worker", "inference")  # no new work first, then what uses inference, then it
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
DEFAULT_GRACE_SECONDS = 10.0
MISCONFIGURED_STATUS = os.EX_CONFIG  # a service says: starting me again would not help

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK_SECONDS = 1.0  # how often strangers are reaped that the kernel gave us


@dataclass(slots=True, eq=False)
class _Service:
    """One service.

    Args:
        name: `api`, `inference` or `worker`.
        command: Program and arguments.
        process: The running process; None while it waits to be started.
        started_at: When it was last started (`time.monotonic`).
        start_at: When it may be started.
        wait_seconds: The last backoff.
    """

    name: str
    command: Sequence[str]
    process: processes.ProcessHandle | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    wait_seconds: float = 0.0

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it."""
        self.process = processes.spawn(self.command, environment)
        self.started_at = time.monotonic()

    def reap(self) -> int | None:
        """Return the status of a process that ended, with its group gone; None if it runs."""
        status = None if self.process is None else self.process.reap()
        if self.process is not None and status is not None:
            self.process.close()
            self.process = None
        return status

    def back_off(self, healthy_seconds: float) -> float:
        """Set when it may start again after a death; return the seconds until then."""
        now = time.monotonic()
        if now - self.started_at >= healthy_seconds:
            self.wait_seconds = 0.0
        self.wait_seconds = max(
            FIRST_BACKOFF_SECONDS, min(2 * self.wait_seconds, LONGEST_BACKOFF_SECONDS)
        )
        self.start_at = now + self.wait_seconds
        return self.wait_seconds


class Supervisor:
    """Runs services until it is told to stop; used from the main thread.

    Args:
        commands: Program and arguments of each service, in the order they are started.
        environment: All environment variables of the services.
        grace_seconds: How long each service has to end after SIGTERM.
        healthy_seconds: A service that ran so long starts again after the first backoff.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        grace_seconds: float = DEFAULT_GRACE_SECONDS,
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self._services = [_Service(name, command) for name, command in commands.items()]
        self._environment = dict(environment)
        self._grace_seconds = grace_seconds
        self._healthy_seconds = healthy_seconds
        self._stop_requests = 0
        self._status = 0

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP; a second one kills what still ends.

        Returns:
            0 after a stop that was asked for; `MISCONFIGURED_STATUS` if a service gave that.
        """
        with self._waking() as wake:
            try:
                while self._stop_requests == 0 and self._status == 0:
                    for service in self._services:
                        self._tend(service)
                    self._sleep(wake, self._seconds_until_start())
            finally:
                for service in sorted(self._services, key=_stop_rank):
                    self._stop(service, wake)
        return self._status

    def _tend(self, service: _Service) -> None:
        status = service.reap()
        if status == MISCONFIGURED_STATUS:
            log.error("%s cannot run as configured; stopping", service.name)
            self._status = status
        elif status is not None:
            wait_seconds = service.back_off(self._healthy_seconds)
            log.warning(
                "%s ended with status %d; starting it again in %.1f s",
                service.name,
                status,
                wait_seconds,
            )
        due = service.process is None and time.monotonic() >= service.start_at
        if due and self._stop_requests == 0 and self._status == 0:
            self._start(service)

    def _start(self, service: _Service) -> None:
        try:
            service.start(self._environment)
        except OSError:  # no more processes, memory or descriptors: that may pass
            log.exception("%s could not be started", service.name)
            service.back_off(self._healthy_seconds)
        else:
            log.info("%s started", service.name)

    def _stop(self, service: _Service, wake: socket.socket) -> None:
        if service.process is None:
            return
        service.process.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while self._still_runs(service):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or self._stop_requests > 1:
                log.warning("%s did not end in time and is killed", service.name)
                service.process.kill_group(signal.SIGKILL)
                service.process.wait(_TICK_SECONDS)
            else:
                self._sleep(wake, left_seconds)

    def _still_runs(self, service: _Service) -> bool:
        for each in self._services:  # one that ends out of turn is reaped as well
            each.reap()
        return service.process is not None

    def _seconds_until_start(self) -> float:
        waits = (s.start_at - time.monotonic() for s in self._services if s.process is None)
        return min(waits, default=_TICK_SECONDS)

    def _sleep(self, wake: socket.socket, timeout_seconds: float) -> None:
        """Sleep until a service ends, a signal comes or the timeout is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            for service in self._services:
                if service.process is not None:
                    selector.register(service.process, selectors.EVENT_READ)
            selector.select(max(0.0, min(timeout_seconds, _TICK_SECONDS)))
        with suppress(BlockingIOError):
            wake.recv(4096)
        self._reap_strangers()

    def _reap_strangers(self) -> None:
        """Reap what the kernel gave us: in a container, this may be the first process."""
        ours = {service.process.pid for service in self._services if service.process is not None}
        how = os.WEXITED | os.WNOHANG
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, how | os.WNOWAIT):
                if ended.si_pid in ours:
                    return  # reaped by its service; strangers behind it wait for the next turn
                os.waitid(os.P_PID, ended.si_pid, how)

    @contextmanager
    def _waking(self) -> Iterator[socket.socket]:
        """Yield a socket that becomes readable when a stop signal was counted."""
        wake, write = socket.socketpair()
        wake.setblocking(False)
        write.setblocking(False)
        numbers = [n for n in _STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, self._count_stop) for number in numbers}
        descriptor = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)
            wake.close()
            write.close()

    def _count_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1


def _stop_rank(service: _Service) -> int:
    return STOP_ORDER.index(service.name) if service.name in STOP_ORDER else len(STOP_ORDER)


def run_supervisor(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    grace_seconds: float = DEFAULT_GRACE_SECONDS,
    healthy_seconds: float = HEALTHY_SECONDS,
) -> int:
    """Run services until this process is told to stop; return its exit status."""
    return Supervisor(commands, environment, grace_seconds, healthy_seconds).run()
