from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from jobs.executors.local import LocalExecutor
from jobs.executors.protocol import (
    AttemptKind,
    AttemptSpec,
    Ended,
    Executor,
    Exited,
    Handle,
    Lost,
    Running,
)
from jobs.processes import ProcessHandle
from tests.integration.attempts import facts_of, write_attempt
from tests.waiting import until

_MODULE = "tests.integration.attempts"
_KINDS: tuple[AttemptKind, ...] = get_args(AttemptKind)

every_kind = pytest.mark.parametrize("kind", _KINDS)


@pytest.fixture
def new_executor() -> Iterator[Callable[..., LocalExecutor]]:
    made: list[LocalExecutor] = []

    def new(target: str = f"{_MODULE}:main") -> LocalExecutor:
        modules: dict[AttemptKind, str] = {"ingest": _MODULE, "download": _MODULE}
        made.append(LocalExecutor(os.environ, target=target, preload=(), modules=modules))
        return made[-1]

    try:
        yield new
    finally:
        for executor in made:
            executor.close()


@pytest.fixture
def executor(new_executor: Callable[..., LocalExecutor]) -> LocalExecutor:
    return new_executor()


def end_of(executor: Executor, handle: Handle, seconds: float = 10.0) -> Ended:
    """Poll as a worker does until the attempt has ended."""
    deadline = time.monotonic() + seconds
    while isinstance(poll := executor.poll(handle), Running):
        assert time.monotonic() < deadline, f"{handle.attempt} did not end within {seconds} s"
        executor.wait(deadline - time.monotonic())
    return poll


def begin(executor: Executor, attempt: AttemptSpec) -> tuple[Handle, dict[str, Any]]:
    """Start an attempt and wait until its child is there and known."""
    handle = executor.start(attempt)

    def facts() -> dict[str, Any] | None:
        executor.poll(handle)
        return facts_of(attempt)

    found = until(facts)
    until(lambda: executor.poll(handle) == Running(found["pid"]))
    return handle, found


@every_kind
@pytest.mark.parametrize("status", [0, 3])
def test_exit_status_is_told_and_output_is_in_the_log(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind, status: int
) -> None:
    handle = executor.start(write_attempt(tmp_path, "exit", kind, status=status))
    assert end_of(executor, handle) == Exited(status, None, killed_by_us=False)
    assert (tmp_path / "log.txt").read_text() == "bye\n"
    assert executor.poll(handle) is handle.ended


@every_kind
def test_signal_that_killed_an_attempt_is_told(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind
) -> None:
    handle = executor.start(write_attempt(tmp_path, "die", kind, signal=signal.SIGSEGV))
    ended = end_of(executor, handle)
    assert ended == Exited(None, signal.SIGSEGV, killed_by_us=False)
    assert ended.describe() == "killed by SIGSEGV"


@every_kind
def test_cancelled_attempt_ends_at_once_and_says_who_did_it(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind
) -> None:
    handle, facts = begin(executor, write_attempt(tmp_path, "wait", kind))
    assert os.getpgid(facts["pid"]) == facts["pid"]
    process = ProcessHandle.of(facts["pid"])
    executor.cancel(handle, grace_seconds=30.0)
    assert end_of(executor, handle, 2.0) == Exited(None, signal.SIGTERM, killed_by_us=True)
    assert not process.signal(0), "told before it was reaped"


@every_kind
def test_attempt_that_ignores_sigterm_is_killed_after_the_grace(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind
) -> None:
    handle, _ = begin(executor, write_attempt(tmp_path, "ignore_terminate", kind))
    cancelled_at = time.monotonic()
    executor.cancel(handle, grace_seconds=0.3)
    assert end_of(executor, handle, 2.0) == Exited(None, signal.SIGKILL, killed_by_us=True)
    assert time.monotonic() - cancelled_at >= 0.3


def test_second_cancel_shortens_the_grace(executor: LocalExecutor, tmp_path: Path) -> None:
    handle, _ = begin(executor, write_attempt(tmp_path, "ignore_terminate"))
    executor.cancel(handle, grace_seconds=600.0)
    assert isinstance(executor.poll(handle), Running)
    executor.cancel(handle, grace_seconds=0.0)
    assert end_of(executor, handle, 2.0) == Exited(None, signal.SIGKILL, killed_by_us=True)


@every_kind
def test_stopped_attempt_can_be_cancelled(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind
) -> None:
    handle, facts = begin(executor, write_attempt(tmp_path, "stop_itself", kind))
    until(lambda: psutil.Process(facts["pid"]).status() == psutil.STATUS_STOPPED)
    executor.cancel(handle, grace_seconds=0.1)
    assert end_of(executor, handle, 2.0) == Exited(None, signal.SIGKILL, killed_by_us=True)


@every_kind
@pytest.mark.parametrize("then", ["wait", "end"])
def test_forks_and_programs_of_an_attempt_end_with_it(
    executor: LocalExecutor, tmp_path: Path, kind: AttemptKind, then: str
) -> None:
    attempt = write_attempt(tmp_path, "multiply", kind, then=then, program=True)
    handle = executor.start(attempt)

    def facts() -> dict[str, Any] | None:
        return facts_of(attempt)

    if then == "wait":
        family = [ProcessHandle.of(pid) for pid in begin_family(executor, handle)]
        executor.cancel(handle, grace_seconds=0.1)
        end_of(executor, handle)
        assert all(process.wait(2.0) for process in family)
    else:
        end_of(executor, handle)
        pids = until(facts)["pids"]
        until(lambda: not any(running(pid) for pid in pids), 2.0)


def begin_family(executor: Executor, handle: Handle) -> list[int]:
    def facts() -> dict[str, Any] | None:
        executor.poll(handle)
        return facts_of(handle.attempt)

    found = until(facts)
    return [found["pid"], *found["pids"]]


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_many_attempts_leave_no_zombie_and_no_descriptor(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    def run(number: int) -> None:
        handles = [
            executor.start(write_attempt(tmp_path / f"{kind}{number}", "exit", kind, status=0))
            for kind in ("train", "ingest")
        ]
        for handle in handles:
            assert end_of(executor, handle) == Exited(0, None, killed_by_us=False)

    run(0)
    server = psutil.Process(executor.server_pid)
    before = psutil.Process().num_fds(), server.num_fds()
    for number in range(1, 21):
        run(number)
    assert (psutil.Process().num_fds(), server.num_fds()) == before
    assert server.children() == []
    assert [c for c in psutil.Process().children() if c.status() == psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_attempt_is_lost_with_the_fork_server_and_the_next_one_gets_a_new_server(
    executor: LocalExecutor, tmp_path: Path, number: int
) -> None:
    attempt = write_attempt(tmp_path / "a", "multiply", then="wait", program=True)
    handle = executor.start(attempt)
    family = [ProcessHandle.of(pid) for pid in begin_family(executor, handle)]
    first_server = executor.server_pid
    assert first_server is not None
    os.kill(first_server, number)
    ended = end_of(executor, handle, 2.0)
    # A server told to end may still report that it killed the child; either is no fault of it.
    assert isinstance(ended, Lost) or number == signal.SIGTERM
    assert all(process.wait(2.0) for process in family)
    again = executor.start(write_attempt(tmp_path / "b", "exit", status=0))
    assert end_of(executor, again) == Exited(0, None, killed_by_us=False)
    assert executor.server_pid != first_server


def test_attempt_cancelled_before_the_server_is_ready_never_begins(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    attempt = write_attempt(tmp_path, "wait")
    handle = executor.start(attempt)
    executor.cancel(handle, grace_seconds=5.0)
    ended = end_of(executor, handle, 1.0)
    assert ended == Exited(None, None, killed_by_us=True)
    assert ended.describe() == "cancelled before it began"
    until(lambda: executor.is_warm)
    assert facts_of(attempt) is None


def test_warm_server_is_used_by_the_next_attempt(executor: LocalExecutor, tmp_path: Path) -> None:
    assert executor.server_pid is None
    executor.warm()
    until(lambda: executor.is_warm)
    server = executor.server_pid
    handle = executor.start(write_attempt(tmp_path, "exit", status=0))
    assert end_of(executor, handle) == Exited(0, None, killed_by_us=False)
    assert executor.server_pid == server


def test_server_that_cannot_import_its_target_is_a_fault_of_each_attempt(
    new_executor: Callable[..., LocalExecutor], tmp_path: Path
) -> None:
    executor = new_executor("tests.integration.no_such_module:main")
    handle = executor.start(write_attempt(tmp_path, "exit", status=0))
    assert end_of(executor, handle) == Exited(1, None, killed_by_us=False)


def test_stopped_server_does_not_keep_a_cancelled_attempt(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    first, facts = begin(executor, write_attempt(tmp_path / "a", "wait"))
    assert executor.server_pid is not None
    os.kill(executor.server_pid, signal.SIGSTOP)
    second = executor.start(write_attempt(tmp_path / "b", "wait"))
    process = ProcessHandle.of(facts["pid"])
    for handle in (first, second):
        executor.cancel(handle, grace_seconds=0.1)
    assert process.wait(1.0)
    for handle in (first, second):
        assert isinstance(end_of(executor, handle, 3.0), Lost)


def test_closing_kills_and_reaps_everything(
    new_executor: Callable[..., LocalExecutor], tmp_path: Path
) -> None:
    executor = new_executor()
    begun = [
        begin(executor, write_attempt(tmp_path / kind, "ignore_terminate", kind)) for kind in _KINDS
    ]
    tree = [ProcessHandle.of(facts["pid"]) for _, facts in begun]
    assert executor.server_pid is not None
    tree.append(ProcessHandle.of(executor.server_pid))
    executor.close()
    assert not any(process.signal(0) for process in tree), "something was not reaped"
    for handle, _ in begun:
        assert executor.poll(handle) == Exited(None, signal.SIGKILL, killed_by_us=True)


def test_local_attempts_cannot_be_taken_over(executor: LocalExecutor, tmp_path: Path) -> None:
    assert executor.reattach(write_attempt(tmp_path, "wait"), "1") is None
