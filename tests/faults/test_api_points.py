"""The api dies, stops or fails at every point of every call that changes something.

The client repeats with its key: what it wanted is there once, and nothing acknowledged is missing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from service.client import GraftProblem
from tests.faults import soak
from tests.faults.api_operations import (
    OPERATIONS,
    export,
    retry,
    submit,
    upload,
)
from tests.faults.checker import violations
from tests.faults.final_state import read_final_state
from tests.faults.ground import wait_for_a_stopped
from tests.faults.history import read_history
from tests.faults.running_api import Api, running_api
from tests.waiting import until

pytestmark = pytest.mark.slow

_OTHER_ACTIONS = ("pause", "enospc", "eio")
_IN_CI = 12  # of the points x other actions
_PAUSE_SECONDS = 0.3


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path / "data", tmp_path) as api:
        yield api


def _strikes() -> list[tuple[object, str, str]]:
    every = [(operation, point) for operation, points in OPERATIONS.items() for point in points]
    kills = [(operation, point, "kill") for operation, point in every]
    others = [(o, point, action) for (o, point), action in product(every, _OTHER_ACTIONS)]
    return [*kills, *soak.sample(others, _IN_CI)]


def _strike(api: Api, operation: object, point: str, action: str) -> None:
    assert callable(operation)
    api.points.ask(point, action)
    going_on = threading.Thread(target=_let_go_on, args=(api.session,))
    if action == "pause":
        going_on.start()
    operation(api.ground)
    if action == "pause":
        going_on.join()
    assert api.points.was_reached(point), f"{operation} passes no {point}"


def _let_go_on(session: int) -> None:
    pid = wait_for_a_stopped(session)
    time.sleep(_PAUSE_SECONDS)
    os.kill(pid, signal.SIGCONT)


def test_no_call_is_lost_or_done_twice_wherever_the_api_is_struck(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strikes = _strikes()
    for operation, point, action in strikes:
        _strike(api, operation, point, action)
    _age_leftovers(tmp_path / "data" / "uploads")
    api.points.ask("submit.before_tx", "kill")  # a start sweeps what killed ones had received
    api.ground.job()
    uploads = tmp_path / "data" / "uploads"
    until(lambda: not list(uploads.rglob("*.tmp")), 10.0, what=str(list(uploads.iterdir())))
    history = read_history(api.history_path)
    final = read_final_state(tmp_path / "data")
    made_up = tuple(v for v in final.versions if v.model.startswith("wish-"))
    judged = replace(final, versions=tuple(v for v in final.versions if v not in made_up))
    assert violations(history, judged, swept=False, unworked=True) == []
    with capsys.disabled():
        sys.stdout.write(f"\n{len(strikes)} strikes at the api, seed {soak.SEED}\n")


def test_a_call_whose_answer_was_lost_is_not_done_again(api: Api) -> None:
    """Committed, then dead: the form of a timeout that hides a success."""
    for operation in (upload, submit, retry, export):
        for action in ("kill", "eio"):
            _strike(api, operation, f"{operation.__name__}.after_commit", action)
    found = violations(
        read_history(api.history_path),
        replace(read_final_state(api.ground.data_folder), versions=()),
        swept=False,
        unworked=True,
    )
    assert found == []


def test_a_row_never_points_to_a_file_that_is_not_there(api: Api) -> None:
    """Nothing is repeated here: what one failing call leaves is judged."""
    for point in ("upload.chunk", "blob.before_fsync", "blob.before_rename", "upload.in_tx"):
        api.points.ask(point, "eio")
        key = api.ground.key()
        with pytest.raises(GraftProblem):
            api.ground.graft.upload(api.ground.archive(key), idempotency_key=key)
        assert api.points.was_reached(point)
    assert read_final_state(api.ground.data_folder).missing_files == ()


def _age_leftovers(uploads: Path) -> None:
    for path in uploads.iterdir():
        os.utime(path, (0, 0))


def test_what_is_acknowledged_is_committed(api: Api) -> None:
    """Asked of the database by another connection, as soon as the answer is there."""
    ground = api.ground
    key = ground.key()
    dataset = ground.client.upload(ground.archive(key), key, name=key)
    assert dataset["id"] in read_final_state(ground.data_folder).datasets
    for job_id in [ground.job() for _ in range(3)]:
        assert job_id in read_final_state(ground.data_folder).jobs
        for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            ground.client.act(job_id, action)
            assert read_final_state(ground.data_folder).jobs[job_id].status == status
