from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import forkserver
from jobs.executors.local import TRAINING_ENVIRONMENT
from jobs.executors.protocol import AttemptSpec
from jobs.executors.warm import Forked, WarmServer
from jobs.processes import ProcessHandle
from tests.integration.attempts import facts_of, write_attempt
from tests.waiting import until

_REPOSITORY = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {**os.environ, **TRAINING_ENVIRONMENT, "PYTHONPATH": str(_REPOSITORY)}


@pytest.fixture
def server() -> Iterator[WarmServer]:
    running = WarmServer(_ENVIRONMENT, "tests.integration.attempts:main", preload=())
    try:
        wait_until_ready(running)
        yield running
    finally:
        running.close(2.0)


def wait_until_ready(server: WarmServer) -> None:
    def ready() -> bool:
        server.pump()
        assert not server.dead, f"the server ended with status {server.status}"
        return server.ready

    until(ready, 60.0)


def start(server: WarmServer, attempt: AttemptSpec) -> int:
    return server.start(attempt.spec_path, attempt.attempt_folder / "log.txt", nice=10)


def wait_until_exited(server: WarmServer, identity: int) -> Forked:
    def exited() -> Forked | None:
        server.pump()
        child = server.child(identity)
        return child if child.status is not None else None

    return until(exited, 20.0)


def wait_for_facts(attempt: AttemptSpec) -> dict[str, Any]:
    return until(lambda: facts_of(attempt))


def wait_for_process(server: WarmServer, identity: int) -> ProcessHandle:
    def process() -> ProcessHandle | None:
        server.pump()
        return server.child(identity).process

    return until(process)


def test_child_has_its_own_group_its_log_and_nothing_of_the_server(
    server: WarmServer, tmp_path: Path
) -> None:
    sibling = write_attempt(tmp_path / "sibling", "wait")
    start(server, sibling)
    wait_for_facts(sibling)
    attempt = write_attempt(tmp_path / "a", "describe")
    assert wait_until_exited(server, start(server, attempt)).status == 0
    facts = wait_for_facts(attempt)
    log = str(tmp_path / "a" / "log.txt")
    assert facts["group"] == facts["pid"]
    assert facts["parent"] == server.process.pid
    assert facts["nice"] == os.nice(0) + 10
    assert facts["session_nice"] in (os.nice(0) + 10, None)
    assert facts["descriptors"] == {"0": "/dev/null", "1": log, "2": log}
    assert facts["blocked_signals"] == []
    assert facts["terminate_is_default"]
    assert facts["threads"] == 1


def test_error_of_a_child_is_in_its_log(server: WarmServer, tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path, "fail", message="no such luck")
    assert wait_until_exited(server, start(server, attempt)).status == 1
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" in log
    assert "ValueError: no such luck" in log


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (0, 0), (7, 7), ("this is why", 1)], ids=str
)
def test_exit_of_a_child_is_told_as_python_would(
    server: WarmServer, tmp_path: Path, code: object, status: int
) -> None:
    attempt = write_attempt(tmp_path, "exit", status=code)
    assert wait_until_exited(server, start(server, attempt)).status == status
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("bye\n")
    assert ("this is why" in log) == (code == "this is why")


def test_children_die_when_the_socket_is_closed(server: WarmServer, tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path, "multiply", then="wait", program=True)
    start(server, attempt)
    tree = [ProcessHandle.of(pid) for pid in family(attempt)]
    server.close(2.0)
    assert server.status == 0
    assert all(process.wait(2.0) for process in tree)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_children_die_with_the_server(server: WarmServer, tmp_path: Path, number: int) -> None:
    # A program started by a child outlives a SIGKILL of the server: nothing of ours is left then
    # to look after it. The executor, which is, kills its group.
    attempt = write_attempt(tmp_path, "multiply", then="wait", program=number != signal.SIGKILL)
    start(server, attempt)
    tree = [ProcessHandle.of(pid) for pid in family(attempt)]
    server.process.signal(number)
    assert all(process.wait(2.0) for process in tree)


def family(attempt: AttemptSpec) -> list[int]:
    facts = wait_for_facts(attempt)
    return [facts["pid"], *facts["pids"]]


def test_signal_right_after_the_fork_reaches_the_child(server: WarmServer, tmp_path: Path) -> None:
    for number in range(20):
        identity = start(server, write_attempt(tmp_path / str(number), "wait"))
        assert wait_for_process(server, identity).kill_group(signal.SIGTERM)
        assert wait_until_exited(server, identity).status == -signal.SIGTERM


def test_warm_server_forks_a_training_child_at_once_and_it_trains(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("torch")
    server = WarmServer(
        _ENVIRONMENT, "tests.integration.torch_attempts:main", forkserver.DEFAULT_PRELOAD
    )
    try:
        wait_until_ready(server)
        tasks = Path(f"/proc/{server.process.pid}/task")
        assert len(list(tasks.iterdir())) == 1, "a thread runs in the server: forks may hang"
        latencies = []
        for number in range(5):
            attempt = write_attempt(tmp_path / str(number), "train")
            asked_at = time.monotonic()
            identity = start(server, attempt)
            latencies.append(wait_for_facts(attempt)["at"] - asked_at)
            assert wait_until_exited(server, identity).status == 0
            assert (facts_of(attempt) or {})["loss"] > 0
        record_property("request_to_first_line_seconds", latencies)
        assert sorted(latencies)[2] < 0.5, latencies
    finally:
        server.close(2.0)
