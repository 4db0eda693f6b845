from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.processes import ProcessHandle
from tests.integration.attempts import facts_in
from tests.waiting import until

_REPOSITORY = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}

_RUN = """
import json, os, sys
from service.supervisor import run_supervisor
sys.exit(run_supervisor(json.loads(sys.argv[1]), os.environ, *map(float, sys.argv[2:])))
"""

#: Writes its number to argv[1]; on SIGTERM its name to argv[2].
_SERVICE = """
import os, signal, sys
from pathlib import Path
name, folder, what = sys.argv[1:]
def stop(*_):
    with Path(folder, "stopped").open("a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "stubborn" else stop)
with Path(folder, name).open("a") as file:
    file.write(f"{os.getpid()}\\n")
if what.isdigit():
    sys.exit(int(what))
while True:
    signal.pause()
"""


class Supervised:
    """A real supervisor with services that do nothing, and what they wrote."""

    def __init__(self, folder: Path, commands: dict[str, list[str]], *seconds: float) -> None:
        self.folder = folder
        argument = json.dumps(commands)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, argument, *map(str, seconds)], env=_ENVIRONMENT
        )

    def starts_of(self, name: str) -> list[int]:
        try:
            return [int(line) for line in (self.folder / name).read_text().split()]
        except FileNotFoundError:
            return []

    def wait_for_start(self, name: str, count: int = 1) -> ProcessHandle:
        pids = until(lambda: pids if len(pids := self.starts_of(name)) >= count else None)
        return ProcessHandle.of(pids[-1])

    def tree(self) -> list[ProcessHandle]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [ProcessHandle.of(process.pid) for process in family]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(
        grace_seconds: float = 5.0, healthy_seconds: float = 30.0, **services: str
    ) -> Supervised:
        commands = {
            name: [sys.executable, "-c", _SERVICE, name, str(tmp_path), what]
            for name, what in services.items()
            if what != "executor"
        }
        if services.get("worker") == "executor":
            module = "tests.integration.fake_worker"
            commands["worker"] = [sys.executable, "-m", module, str(tmp_path / "attempts")]
        made.append(Supervised(tmp_path, commands, grace_seconds, healthy_seconds))
        return made[-1]

    try:
        yield start
    finally:
        for supervised in made:
            supervised.process.kill()
            supervised.process.wait()


def test_killed_service_is_started_again_and_the_others_stay(
    supervise: Callable[..., Supervised],
) -> None:
    supervised = supervise(api="wait", worker="wait")
    api = supervised.wait_for_start("api")
    worker = supervised.wait_for_start("worker")
    worker.signal(signal.SIGKILL)
    assert supervised.wait_for_start("worker", 2).alive()
    assert api.alive()
    assert len(supervised.starts_of("api")) == 1


def test_service_that_dies_at_once_is_started_less_and_less_often(
    supervise: Callable[..., Supervised],
) -> None:
    started_at = time.monotonic()
    supervised = supervise(api="1")
    supervised.wait_for_start("api", 4)
    assert time.monotonic() - started_at > 0.2 + 0.4 + 0.8


def test_service_that_was_healthy_is_started_again_without_delay(
    supervise: Callable[..., Supervised],
) -> None:
    supervised = supervise(healthy_seconds=0.01, api="1")
    supervised.wait_for_start("api")
    started_at = time.monotonic()
    supervised.wait_for_start("api", 5)
    assert time.monotonic() - started_at < 0.2 + 0.4 + 0.8 + 1.6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_it_stops_services_in_order_and_exits_with_zero(
    supervise: Callable[..., Supervised], tmp_path: Path, number: int
) -> None:
    supervised = supervise(inference="wait", worker="wait", api="wait")
    for name in ("api", "worker", "inference"):
        supervised.wait_for_start(name)
    tree = supervised.tree()
    supervised.process.send_signal(number)
    assert supervised.process.wait(30.0) == 0
    assert (tmp_path / "stopped").read_text().split() == ["api", "worker", "inference"]
    assert not any(process.alive() for process in tree)


def test_service_that_ignores_sigterm_is_killed_after_the_grace(
    supervise: Callable[..., Supervised],
) -> None:
    supervised = supervise(grace_seconds=0.3, api="stubborn")
    api = supervised.wait_for_start("api")
    supervised.process.terminate()
    assert supervised.process.wait(30.0) == 0
    assert not api.alive()


def test_second_request_to_stop_kills_at_once(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(grace_seconds=600.0, inference="wait", api="stubborn")
    supervised.wait_for_start("api")
    inference = supervised.wait_for_start("inference")
    supervised.process.terminate()
    assert not inference.wait(0.1), "stopped before the api"
    supervised.process.terminate()
    assert supervised.process.wait(30.0) == 0
    assert not inference.alive()


def test_service_that_cannot_run_as_configured_stops_everything(
    supervise: Callable[..., Supervised],
) -> None:
    supervised = supervise(worker="wait", api=str(os.EX_CONFIG))
    assert supervised.process.wait(10.0) == os.EX_CONFIG


def attempts_of_worker(folder: Path, worker_pid: int) -> list[int]:
    """Return the processes of a fake worker's attempts and their forks, once all are there."""

    def told() -> list[int] | None:
        own = folder / "attempts" / str(worker_pid)
        facts = [facts_in(own / kind) for kind in ("train", "ingest")]
        if not all(facts):
            return None
        return [pid for each in facts if each for pid in (each["pid"], *each.get("pids", ()))]

    return until(told)


def only_worker(supervised: Supervised) -> int:
    def pid() -> int | None:
        folder = supervised.folder / "attempts"
        live = [int(p.name) for p in folder.iterdir()] if folder.exists() else []
        return next((p for p in live if psutil.pid_exists(p)), None)

    return until(pid)


def test_killed_supervisor_leaves_no_process_behind(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    supervised = supervise(api="wait", inference="stubborn", worker="executor")
    supervised.wait_for_start("api")
    supervised.wait_for_start("inference")
    attempts = attempts_of_worker(tmp_path, only_worker(supervised))
    tree = supervised.tree()
    # api, inference, worker, fork server, train child, its fork, ingest child
    assert len(tree) == 7
    assert set(attempts) <= {process.pid for process in tree}
    killed_at = time.monotonic()
    supervised.process.kill()
    assert all(process.wait(killed_at + 2.0 - time.monotonic()) for process in tree)


def test_killed_worker_takes_its_tree_along_and_a_new_one_starts(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    supervised = supervise(worker="executor")
    first = only_worker(supervised)
    attempts_of_worker(tmp_path, first)
    tree = supervised.tree()
    killed_at = time.monotonic()
    os.kill(first, signal.SIGKILL)
    assert all(process.wait(killed_at + 2.0 - time.monotonic()) for process in tree)
    second = only_worker(supervised)
    assert second != first
    attempts_of_worker(tmp_path, second)


def test_supervisor_needs_neither_torch_nor_the_web_framework() -> None:
    text = "import sys, service.supervisor; print(*sys.modules)"
    command = [sys.executable, "-c", text]
    modules = subprocess.run(
        command, env=_ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "fastapi", "pydantic", "sqlalchemy"} & set(modules)
