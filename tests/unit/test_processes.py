from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs import processes
from jobs.processes import Inherited, ProcessHandle, spawn
from tests.waiting import until

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_REPOSITORY)}


@pytest.fixture
def program(environment: dict[str, str]) -> Iterator[_Program]:
    running = _Program(environment)
    try:
        yield running
    finally:
        running.close()


class _Program:
    """A child of ours that runs Python text and prints process numbers."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._handles: list[ProcessHandle] = []

    def run(self, text: str) -> tuple[ProcessHandle, list[ProcessHandle]]:
        """Return the process and the ones whose numbers it prints on its first line."""
        read, write = os.pipe()
        with os.fdopen(read) as lines:
            try:
                command = [sys.executable, "-c", text]
                process = spawn(command, self._environment, Inherited(output=write))
            finally:
                os.close(write)
            others = [ProcessHandle.of(int(pid)) for pid in lines.readline().split()]
        self._handles += [process, *others]
        return process, others

    def close(self) -> None:
        for handle in self._handles:
            handle.signal(signal.SIGKILL)
            handle.wait(2.0)
            with suppress(ChildProcessError):
                handle.reap()
            handle.close()


def status_of(process: ProcessHandle) -> int:
    assert process.wait(5.0)
    status = process.reap()
    assert status is not None
    return status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_reaping_tells_how_a_process_ended(program: _Program, text: str, status: int) -> None:
    process, _ = program.run(text)
    assert status_of(process) == status


def test_command_that_cannot_be_run_says_so(environment: dict[str, str]) -> None:
    process = spawn(["/nowhere/at/all"], environment)
    assert status_of(process) == 127
    process.close()


def test_process_is_alive_until_it_ends_and_leads_its_own_group(program: _Program) -> None:
    process, _ = program.run("import signal; print(flush=True); signal.pause()")
    assert process.alive()
    assert process.reap() is None
    assert os.getpgid(process.pid) == process.pid
    assert process.kill_group(signal.SIGTERM)
    assert status_of(process) == -signal.SIGTERM
    assert not process.alive()


def test_nothing_is_signalled_after_a_process_was_reaped(program: _Program) -> None:
    process, _ = program.run("pass")
    status_of(process)
    assert not process.signal(signal.SIGKILL)
    assert not process.kill_group(signal.SIGKILL)


def test_reaping_a_leader_kills_what_is_left_of_its_group(program: _Program) -> None:
    leader, others = program.run(
        "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    )
    assert others[0].alive()
    assert status_of(leader) == 0
    assert others[0].wait(2.0)


def test_process_whose_parent_is_gone_kills_itself_before_it_becomes_a_program() -> None:
    somebody_else = "1"
    command = [sys.executable, "-I", "-S", processes.__file__, somebody_else, "0", "true"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_spawned_process_dies_when_its_parent_is_killed(program: _Program) -> None:
    parent, children = program.run(
        "import os, signal; from jobs.processes import spawn\n"
        "print(spawn(['sleep', '600'], os.environ).pid, flush=True); signal.pause()"
    )
    until(lambda: Path(f"/proc/{children[0].pid}/comm").read_text() == "sleep\n")  # it has begun
    parent.signal(signal.SIGKILL)
    assert children[0].wait(2.0)


def test_forks_of_a_bound_process_die_with_it_in_every_generation(program: _Program) -> None:
    parent, forks = program.run(
        "import os, signal; from jobs.processes import bind_forks\n"
        "bind_forks(); bind_forks(); read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    grandchild = os.fork()\n"
        "    if grandchild: os.write(write, f'{os.getpid()} {grandchild}'.encode())\n"
        "    signal.pause()\n"
        "print(os.read(read, 99).decode(), flush=True); signal.pause()"
    )
    assert len(forks) == 2
    parent.signal(signal.SIGKILL)
    assert all(fork.wait(2.0) for fork in forks)


def test_niceness_is_added(program: _Program, environment: dict[str, str]) -> None:
    process = spawn(["sleep", "600"], environment, Inherited(nice=3))
    until(lambda: os.getpriority(os.PRIO_PROCESS, process.pid) == os.nice(0) + 3)
    group = Path(f"/proc/{process.pid}/autogroup")  # "/autogroup-1 nice 3"
    if group.exists():
        until(lambda: group.read_text().endswith(f" nice {os.nice(0) + 3}\n"))
    process.kill_group(signal.SIGKILL)
    status_of(process)
    process.close()


def test_thread_that_may_end_before_the_process_cannot_start_processes(
    environment: dict[str, str],
) -> None:
    refused: list[BaseException] = []

    def start() -> None:
        try:
            spawn(["true"], environment)
        except RuntimeError as error:
            refused.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(refused[0])
