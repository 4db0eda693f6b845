"""`retry` with `reproduce`: the same bytes from the receipt, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from jobs.store import jobs, models, tables
from service.client import Graft, GraftProblem, JobFailed, Json
from tests import images
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

SMALL: dict[str, Any] = {"backbone": "squeezenet1_1"}


@pytest.fixture(scope="module")
def dataset_id(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("drawn") / "drawn.zip"
    images.write_zip(path, images.class_folders(("disc", "cross"), per_class=12))
    return str(graft.wait_for_dataset(graft.upload(path, name="drawn")["id"])["id"])


def weights_of(graft: Graft, service: RunningService, model: str, version: int) -> str:
    with service.database() as database, database.read() as connection:
        files = models.version(connection, model, version, "default").files
    return str(files["model.safetensors"]["sha256"])


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("head", {}),
        ("finetune", {"epochs": 2, "batch_size": 8}),
        ("auto", {"epochs": 1, "batch_size": 8}),
        ("scratch", {"epochs": 2, "batch_size": 8}),
    ],
)
def test_reproduction_gives_the_same_weights_to_the_bit(
    graft: Graft, service: RunningService, dataset_id: str, recipe: str, parameters: Json
) -> None:
    model = f"repeated-{recipe}"
    first = graft.wait_for_job(
        graft.submit(
            dataset_id, recipe=recipe, parameters=parameters, model=model, seed=5, **SMALL
        )["id"]
    )
    asked = graft.reproduce(first["id"])
    assert asked["retry_of"] == first["id"]
    assert graft.reproduce(first["id"])["id"] == asked["id"]
    again = graft.wait_for_job(asked["id"])
    assert again["resolved"] == first["resolved"]
    told = again["result"]["reproduced"]
    assert told["job"] == first["id"]
    published = 2 if recipe == "auto" else 1
    expected = [
        {"version": published + n, "of_version": n, "same_weights": True}
        for n in range(1, published + 1)
    ]
    assert told["versions"] == expected
    for row in expected:
        hashes = [weights_of(graft, service, model, row[k]) for k in ("version", "of_version")]
        assert hashes[0] == hashes[1]
    assert graft.model(model)["aliases"]["default"] <= published  # a reproduction moves no alias


def test_what_is_not_as_recorded_is_named_before_anything_is_learned(
    graft: Graft, service: RunningService, dataset_id: str
) -> None:
    first = graft.wait_for_job(graft.submit(dataset_id, model="changed", **SMALL)["id"])
    of_first = tables.jobs.c.id == first["id"]
    with service.database() as database, database.write() as connection:
        resolved = jobs.get(connection, first["id"], "default").resolved
        assert resolved is not None
        resolved["numerics"]["torch"] = "1.0"
        connection.execute(update(tables.jobs).where(of_first).values(resolved=resolved))
    with pytest.raises(JobFailed) as failed:
        graft.wait_for_job(graft.reproduce(first["id"])["id"])
    error = failed.value.job["error"]
    assert error["code"] == "not-reproducible"
    assert "numerics.torch was '1.0' and is '2." in error["detail"]
    assert graft.model("changed")["versions"] == [1]


def test_job_is_retried_one_way_only(graft: Graft, dataset_id: str) -> None:
    job = graft.wait_for_job(graft.submit(dataset_id, model="once", **SMALL)["id"])
    again = graft.act(job["id"], "retry")
    with pytest.raises(GraftProblem) as refused:
        graft.reproduce(job["id"])
    assert (refused.value.status, refused.value.code) == (409, "retry-exists")
    assert again["id"] in str(refused.value)


def test_race_has_no_receipt_to_reproduce(graft: Graft, dataset_id: str) -> None:
    parameters = {"backbones": ["squeezenet1_1"]}
    job = graft.submit(dataset_id, type="race", parameters=parameters)
    graft.wait_for_job(job["id"])
    with pytest.raises(GraftProblem) as refused:
        graft.reproduce(job["id"])
    assert (refused.value.status, refused.value.code) == (409, "receipt-missing")
