"""Cancel really cancels: at once while queued, soon while running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.client import Graft, GraftProblem
from tests.acceptance.running import RunningService
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

SLOW: dict[str, Any] = {
    "recipe": "finetune",
    "backbone": "squeezenet1_1",
    "parameters": {"epochs": 50},
}


@pytest.fixture(scope="module")
def dataset_id(graft: Graft, shared: Path) -> str:
    found = graft.upload(shared / "data" / "hymenoptera.zip", name="cancels")
    return str(graft.wait_for_dataset(found["id"])["id"])


def test_running_job_is_cancelled_soon_and_frees_its_slot(
    graft: Graft, service: RunningService, dataset_id: str
) -> None:
    running = graft.submit(dataset_id, **SLOW)
    queued = graft.submit(dataset_id, **SLOW)
    until(lambda: graft.job(running["id"])["phase"] == "train", 60.0)
    assert graft.job(queued["id"])["queue_position"] == 0
    child = service.pids()["train"]

    cancelled = graft.act(queued["id"], "cancel")
    assert cancelled["status"] == "cancelled"

    graft.act(running["id"], "cancel")
    until(lambda: graft.job(running["id"])["status"] == "cancelled", 10.0)  # 1 s, if idle
    assert service.pids().get("train") != child
    assert graft.act(running["id"], "cancel")["status"] == "cancelled"  # idempotent
    with pytest.raises(GraftProblem) as refused:
        graft.act(running["id"], "resume")
    assert refused.value.status == 409


def test_paused_job_frees_its_slot_and_goes_on_from_its_checkpoint(
    graft: Graft, service: RunningService, dataset_id: str
) -> None:
    job = graft.submit(dataset_id, **{**SLOW, "parameters": {"epochs": 1}})
    until(lambda: graft.job(job["id"])["phase"] == "train", 60.0)
    graft.act(job["id"], "pause")
    until(lambda: graft.job(job["id"])["status"] == "paused", 30.0)
    until(lambda: "train" not in service.pids(), 2.0)
    graft.act(job["id"], "resume")
    until(lambda: graft.job(job["id"])["status"] in ("queued", "running"), 5.0)
    done = graft.wait_for_job(job["id"])
    assert done["attempt"] == 2
    phases = [e["data"]["data"]["phase"] for e in graft.events(job["id"]) if e["event"] == "phase"]
    assert phases.count("head") == 1  # the second attempt started behind the head


def test_higher_priority_goes_first(graft: Graft, dataset_id: str) -> None:
    blocking = graft.submit(dataset_id, **SLOW)
    until(lambda: graft.job(blocking["id"])["status"] == "running", 10.0)
    low = graft.submit(dataset_id, backbone="squeezenet1_1", model="low")
    high = graft.submit(dataset_id, backbone="squeezenet1_1", model="high", priority=5)
    assert graft.job(high["id"])["queue_position"] == 0
    assert graft.job(low["id"])["queue_position"] == 1
    graft.act(blocking["id"], "cancel")
    first, second = graft.wait_for_job(high["id"]), graft.wait_for_job(low["id"])
    assert first["finished_at"] <= second["started_at"]


def test_retry_makes_one_new_job_however_often_it_is_asked_for(
    graft: Graft, dataset_id: str
) -> None:
    job = graft.submit(dataset_id, backbone="squeezenet1_1", model="retried")
    graft.wait_for_job(job["id"])
    again, once_more = (graft.act(job["id"], "retry") for _ in range(2))
    assert again["id"] == once_more["id"] != job["id"]
    assert again["retry_of"] == job["id"]
    assert graft.wait_for_job(again["id"])["result"]["version"] == 2
