"""A race over HTTP and on the command line, on real photographs and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.client import Graft, GraftProblem, Json
from tests.acceptance.running import RunningService
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

BACKBONES = ["mobilenet_v2", "squeezenet1_1"]


@pytest.fixture(scope="module")
def dataset_id(graft: Graft, shared: Path) -> str:
    found = graft.upload(shared / "data" / "hymenoptera.zip", name="raced")
    return str(graft.wait_for_dataset(found["id"])["id"])


@pytest.fixture(scope="module")
def raced(graft: Graft, dataset_id: str) -> Json:
    job = graft.submit(dataset_id, type="race", parameters={"backbones": BACKBONES})
    assert job["spec"]["parameters"]["folds"] == 5
    return graft.wait_for_job(job["id"])


def test_race_ranks_real_backbones_and_publishes_nothing(graft: Graft, raced: Json) -> None:
    result = raced["result"]
    assert raced["resources"]["peak_memory_bytes"] > 0
    assert not {"resources", "next_engine"} & set(result)
    assert [row["backbone"] for row in result["ranking"]] == BACKBONES
    first, second = result["ranking"]
    assert first["accuracy_top1"] >= 0.94
    assert not second["indistinguishable_from_best"]
    assert result["recommendation"]["backbone"] == "mobilenet_v2"
    points = result["learning_curves"][0]["points"]
    assert [p["fraction"] for p in points] == [0.1, 0.25, 0.5, 1.0]
    assert points[0]["loss"] > points[-1]["loss"]
    assert list(graft.models()) == []


def test_downloaded_means_what_is_on_disk(graft: Graft, dataset_id: str, raced: Json) -> None:
    job = graft.submit(dataset_id, type="race")
    assert [e["architecture"] for e in job["spec"]["entrants"]] == BACKBONES
    again = graft.wait_for_job(job["id"])["result"]
    assert all(row["feature_seconds"] is None for row in again["ranking"])
    losses = [[row["loss"] for row in found["ranking"]] for found in (raced["result"], again)]
    assert losses[0] == losses[1]


def test_command_line_prints_a_table(service: RunningService, dataset_id: str, raced: Json) -> None:
    command = [sys.executable, "-m", "service.cli.main", "race", dataset_id]
    environment = {**os.environ, "GRAFT_URL": service.url, "COLUMNS": "200"}
    options = [option for name in BACKBONES for option in ("--backbone", name)]
    told = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    assert "take mobilenet_v2: mobilenet_v2 is the best, beyond noise" in told.stdout
    shown = subprocess.run(
        [*command, *options, "--json"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert json.loads(shown.stdout)["ranking"][0]["backbone"] == "mobilenet_v2"


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"parameters": {"backbones": []}}, "/parameters/backbones"),
        ({"parameters": {"backbones": ["resnet18", "resnet18"]}}, "/parameters/backbones"),
        ({"parameters": {"folds": 1}}, "/parameters/folds"),
        ({"parameters": {"penalty": 1}}, "/parameters/penalty"),
        ({"recipe": "finetune"}, "/recipe"),
        ({"model": "m"}, "/model"),
        ({"block_on": "error"}, "/block_on"),
    ],
)
def test_what_a_race_does_not_take_is_refused(
    graft: Graft, dataset_id: str, fields: Json, pointer: str
) -> None:
    with pytest.raises(GraftProblem) as refused:
        graft.submit(dataset_id, type="race", **fields)
    assert refused.value.status == 422
    assert [fault["pointer"] for fault in refused.value.problem["errors"]] == [pointer]


def test_unknown_backbone_is_refused_with_close_names(graft: Graft, dataset_id: str) -> None:
    with pytest.raises(GraftProblem, match="resnet18"):
        graft.submit(dataset_id, type="race", parameters={"backbones": ["resnet81"]})


def test_race_is_paused_resumed_and_cancelled(
    graft: Graft, shared: Path, service: RunningService
) -> None:
    path = shared / "data" / "hymenoptera.zip"
    fresh = graft.wait_for_dataset(graft.upload(path, name="raced-again")["id"])["id"]
    parameters = {"backbones": BACKBONES, "batch_size": 4}  # features of their own
    job = graft.submit(fresh, type="race", parameters=parameters)
    until(lambda: graft.job(job["id"])["progress"], 60.0)
    graft.act(job["id"], "pause")
    until(lambda: graft.job(job["id"])["status"] == "paused", 30.0)
    assert "train" not in service.pids()
    graft.act(job["id"], "resume")
    done = graft.wait_for_job(job["id"])
    assert done["attempt"] == 2
    assert len(done["result"]["ranking"]) == 2
    again = graft.submit(fresh, type="race", parameters={**parameters, "batch_size": 5})
    until(lambda: graft.job(again["id"])["progress"], 60.0)
    graft.act(again["id"], "cancel")
    until(lambda: graft.job(again["id"])["status"] == "cancelled", 2.0)
