"""Recipe `auto` over HTTP: the head is served while the network learns; each is published once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.store import models
from service.client import Graft, Json
from tests import images
from tests.acceptance.running import RunningService, running
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

SMALL: dict[str, Any] = {
    "backbone": "squeezenet1_1",
    "recipe": "auto",
    "parameters": {"epochs": 2, "batch_size": 8},
}
LONG: dict[str, Any] = {**SMALL, "parameters": {"epochs": 500, "batch_size": 8}}
#: In the order in which a job reaches them; never three of one child without a checkpoint.
POINTS = (
    "train.after_candidate",  # the child: its worker publishes what it offered all the same
    "candidate.before_tx",  # the worker: the next attempt offers it again
    "candidate.in_tx",
    "candidate.after_commit",
    "train.after_head",
    "train.step:2",
    "publish.before_tx",
    "publish.in_tx",
    "publish.after_commit",
)


@pytest.fixture(scope="module")
def dataset_id(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("drawn") / "drawn.zip"
    images.write_zip(path, images.class_folders(("disc", "cross"), per_class=15))
    found = graft.wait_for_dataset(graft.upload(path, name="drawn")["id"])
    return str(found["id"])


def result_of_head(job: Json) -> Json | None:
    return job["result"] if job["status"] == "running" else None


def test_head_is_served_while_the_network_learns(graft: Graft, dataset_id: str) -> None:
    job = graft.submit(dataset_id, model="early", **LONG)
    first = until(lambda: result_of_head(graft.job(job["id"])), 60.0)
    assert first["candidates"] == [{"recipe": "head", "version": 1}]
    assert graft.model("early")["aliases"]["default"] == 1
    assert graft.predict("early", images.shape_bytes("disc", 3))["model"]["version"] == 1
    assert graft.job(job["id"])["status"] == "running"
    graft.act(job["id"], "cancel")
    until(lambda: graft.job(job["id"])["status"] == "cancelled", 2.0)
    assert graft.model("early")["versions"] == [1]  # what was published stays
    assert graft.job(job["id"])["result"]["version"] == 1
    assert graft.predict("early", images.shape_bytes("cross", 3))["model"]["version"] == 1


def test_both_candidates_are_kept_and_the_answer_says_which_is_served(
    graft: Graft, dataset_id: str
) -> None:
    job = graft.wait_for_job(graft.submit(dataset_id, model="both", **SMALL)["id"])
    result = job["result"]
    assert [c["version"] for c in result["candidates"]] == [1, 2]
    assert [c["recipe"] for c in result["candidates"]] == ["head", "finetune"]
    model = graft.model("both")
    assert model["versions"] == [1, 2]
    assert model["aliases"]["default"] == (2 if result["promoted"] else 1) == result["version"]
    served = model["default"]["metrics"]
    assert {name: job["metrics"][name] for name in served} == served
    assert result["comparison"]["draws"] == 10_000
    assert result["split"] == "val"
    kinds = [event["event"] for event in graft.events(job["id"])]
    assert kinds.count("candidate") == 1


def test_paused_job_keeps_its_head_and_offers_nothing_twice(
    graft: Graft, service: RunningService, dataset_id: str
) -> None:
    job = graft.submit(
        dataset_id, model="paused", **{**SMALL, "parameters": {"epochs": 30, "batch_size": 8}}
    )
    until(lambda: graft.job(job["id"])["phase"] == "train", 60.0)
    graft.act(job["id"], "pause")
    until(lambda: graft.job(job["id"])["status"] == "paused", 30.0)
    until(lambda: "train" not in service.pids(), 60.0)  # but for an engine that is being built
    assert graft.predict("paused", images.shape_bytes("disc", 4))["model"]["version"] == 1
    graft.act(job["id"], "resume")
    done = graft.wait_for_job(job["id"])
    assert done["attempt"] == 2
    assert graft.model("paused")["versions"] == [1, 2]


def test_default_moved_by_hand_meanwhile_stays(graft: Graft, dataset_id: str) -> None:
    graft.wait_for_job(graft.submit(dataset_id, backbone="squeezenet1_1", model="moved")["id"])
    job = graft.submit(
        dataset_id, model="moved", **{**SMALL, "parameters": {"epochs": 10, "batch_size": 8}}
    )
    until(lambda: result_of_head(graft.job(job["id"])), 60.0)
    assert graft.model("moved")["aliases"]["default"] == 2
    graft.set_alias("moved", "default", 1)
    result = graft.wait_for_job(job["id"])["result"]
    assert not result["promoted"]
    assert graft.model("moved")["aliases"]["default"] == 1
    assert graft.model("moved")["versions"] == [1, 2, 3]


def test_without_promote_the_alias_stays(graft: Graft, dataset_id: str) -> None:
    graft.wait_for_job(graft.submit(dataset_id, backbone="squeezenet1_1", model="kept")["id"])
    job = graft.submit(dataset_id, model="kept", promote=False, **SMALL)
    assert not graft.wait_for_job(job["id"])["result"]["promoted"]
    assert graft.model("kept")["aliases"] == {"default": 1, "latest": 3}


def test_two_versions_are_published_although_every_point_kills_once(
    tmp_path: Path, shared: Path
) -> None:
    archive = images.write_zip(
        tmp_path / "drawn.zip", images.class_folders(("disc", "cross"), per_class=10)
    )
    environment = {"GRAFT_FAULTS": ",".join(f"{point}=kill" for point in POINTS)}
    catalogue = shared / "weights" / "catalog.json"
    data_folder = tmp_path / "data"
    with (
        running(data_folder, catalogue=catalogue, environment=environment) as service,
        service.client() as graft,
    ):
        dataset = graft.wait_for_dataset(graft.upload(archive, name="crashed")["id"])
        job = graft.submit(dataset["id"], model="crashed", **SMALL)
        done = graft.wait_for_job(job["id"])
        assert [c["version"] for c in done["result"]["candidates"]] == [1, 2]
        assert graft.model("crashed")["versions"] == [1, 2]
        kinds = [event["event"] for event in graft.events(job["id"])]
        assert kinds.count("candidate") == 1
        until(graft.is_ready, 30.0)
        assert graft.predict("crashed", images.shape_bytes("disc", 5))["predictions"]
        reached = {path.name for path in (service.data_folder / "run" / "faults").iterdir()}
    assert reached == {point.replace(":", "-") for point in POINTS}
    with service.database() as database, database.read() as connection:
        versions = models.of_job(connection, job["id"], "default")
    assert [version.version for version in versions] == [1, 2]
