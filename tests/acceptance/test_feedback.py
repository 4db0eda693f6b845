"""Features, the nearest images, and feedback that a model learns: over HTTP, on photographs."""

from __future__ import annotations

import base64
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Graft, GraftProblem, Json
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

BACKBONE = "squeezenet1_1"
MODEL = "insects"
PERSONS = 6
_PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def insects(graft: Graft, shared: Path) -> Json:
    archive = shared / "data" / "hymenoptera.zip"
    return graft.wait_for_dataset(graft.upload(archive, name="insects")["id"])


@pytest.fixture(scope="module")
def trained(graft: Graft, insects: Json) -> Json:
    job = graft.submit(insects["id"], backbone=BACKBONE, model=MODEL)
    return graft.wait_for_job(job["id"])


@pytest.fixture(scope="module")
def photographs(shared: Path, graft: Graft, insects: Json) -> dict[str, bytes]:
    """The bytes of the data set's images, by id."""
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        return {item["id"]: archive.read(item["path"]) for item in graft.images(insects["id"])}


@pytest.fixture(scope="module")
def pedestrians(shared: Path) -> list[bytes]:
    with zipfile.ZipFile(shared / "data" / "PennFudanPed.zip") as archive:
        names = sorted(n for n in archive.namelist() if "/PNGImages/" in n and n.endswith(".png"))
        return [archive.read(name) for name in names[:PERSONS]]


def similar(graft: Graft, *images: bytes, **asked: Any) -> list[list[Json]]:  # noqa: ANN401
    """Ask again while the images of the data set are still being looked at."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return graft.similar(MODEL, *images, **asked)
        except GraftProblem as problem:
            if problem.code != "index-not-ready" or time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_embeddings_are_the_features_that_the_head_saw(
    graft: Graft, trained: Json, photographs: dict[str, bytes]
) -> None:
    first, second = list(photographs.values())[:2]
    raw, again = graft.embed(MODEL, first, second), graft.embed(f"{MODEL}@1", first)
    assert raw[0] is not None
    assert len(raw[0]) == 512
    assert again[0] == pytest.approx(raw[0], rel=1e-4, abs=1e-4)  # alone, and in a batch of two
    unit = graft.embed(MODEL, first, normalize=True)[0]
    assert np.linalg.norm(np.array(unit)) == pytest.approx(1, abs=1e-5)
    assert graft.embed(MODEL, first, b"no image")[1] is None
    with pytest.raises(GraftProblem) as refused:
        graft.embed(MODEL, b"no image")
    assert refused.value.status == 422


def test_an_image_of_the_data_set_is_its_own_nearest(
    graft: Graft, trained: Json, insects: Json, photographs: dict[str, bytes]
) -> None:
    chosen = list(photographs)[::60]
    found = similar(graft, *[photographs[image_id] for image_id in chosen], k=3)
    for image_id, neighbours in zip(chosen, found, strict=True):
        assert neighbours[0]["image"] == image_id
        assert neighbours[0]["similarity"] == pytest.approx(1, abs=1e-3)
        assert [n["similarity"] for n in neighbours] == sorted(
            (n["similarity"] for n in neighbours), reverse=True
        )
        assert {"label", "split", "thumbnail"} <= neighbours[1].keys()


def test_an_index_is_the_data_set_that_the_user_names(
    graft: Graft,
    trained: Json,
    pedestrians: list[bytes],
    photographs: dict[str, bytes],
    tmp_path: Path,
) -> None:
    path = tmp_path / "street.zip"
    ants = list(photographs.values())[:3]
    with zipfile.ZipFile(path, "w") as archive:
        for number, data in enumerate(pedestrians):
            archive.writestr(f"train/{'far' if number % 2 else 'near'}/{number}.png", data)
        for number, data in enumerate(ants):
            archive.writestr(f"val/near/{number}.jpg", data)
    street = graft.wait_for_dataset(graft.upload(path, name="street")["id"])
    (found,) = similar(graft, pedestrians[1], k=100, dataset=street["id"])
    assert len(found) == PERSONS + len(ants)
    assert found[0]["label"] == "far"
    asked = f"/v1/models/{MODEL}/similar?split=val&dataset={street['id']}"
    only = graft._call("POST", asked, content=pedestrians[1])
    assert {item["split"] for item in only["results"][0]["neighbours"]} == {"val"}
    with pytest.raises(GraftProblem) as refused:
        graft.similar(MODEL, pedestrians[1], dataset="ds_none")
    assert refused.value.code == "dataset-not-found"


def test_feedback_that_cannot_be_used_is_refused_and_nothing_is_kept(
    graft: Graft, trained: Json, pedestrians: list[bytes]
) -> None:
    picture = base64.b64encode(pedestrians[0]).decode()
    wrong: list[tuple[Json, str]] = [
        ({"b64": picture, "label": "wasps"}, "unknown-label"),
        ({"b64": picture}, "one-of"),
        ({"b64": picture, "labels": ["ants", "bees"]}, "one-label"),
        ({"b64": base64.b64encode(b"no image").decode(), "label": "ants"}, "unreadable-image"),
        ({"b64": "###", "label": "ants"}, "invalid-base64"),
    ]
    good = {"b64": picture, "label": "ants"}
    for item, code in wrong:
        with pytest.raises(GraftProblem) as refused:
            graft._call("POST", f"/v1/models/{MODEL}/feedback", json={"inputs": [good, item]})
        assert refused.value.status == 422
        fault = refused.value.problem["errors"][0]
        assert fault["code"] == code
        assert fault["pointer"].startswith("/inputs/1")
    assert graft._call("GET", f"/v1/models/{MODEL}/feedback")["data"] == []
    with pytest.raises(GraftProblem) as refused:
        graft.apply_feedback(MODEL)
    assert refused.value.code == "feedback-missing"


def test_feedback_becomes_a_version_of_the_data_set_and_a_model_that_knows_it(
    graft: Graft,
    service: RunningService,
    trained: Json,
    insects: Json,
    pedestrians: list[bytes],
    photographs: dict[str, bytes],
) -> None:
    """Pedestrians called bees, one mind changed, one deleted, and one val label corrected."""
    for picture in pedestrians:
        said = graft.feedback(MODEL, picture, "bees")
        assert said["predicted"]["label"] in ("ants", "bees")
        assert said["agreed"] == (said["predicted"]["label"] == "bees")
    graft.feedback(MODEL, pedestrians[0], "ants")
    graft.feedback(MODEL, pedestrians[0], "bees")  # of two about one image the later counts
    unwanted = graft.feedback(MODEL, pedestrians[1], "ants")
    graft._call("DELETE", f"/v1/models/{MODEL}/feedback/{unwanted['id']}")
    old = {item["id"]: item for item in graft.images(insects["id"])}
    flipped = next(item for item in old.values() if item["split"] == "val")
    other = "bees" if flipped["label"] == "ants" else "ants"
    graft.feedback(MODEL, photographs[flipped["id"]], other)

    key = {"Idempotency-Key": "apply-once"}
    path = f"/v1/models/{MODEL}/feedback/apply"
    made = graft._call("POST", path, json={"retrain": True}, headers=key)
    assert graft._call("POST", path, json={"retrain": True}, headers=key) == made
    assert made["images"] == PERSONS + 3

    grown = graft.wait_for_dataset(made["dataset"])
    assert (grown["parent"], grown["version"]) == (insects["id"], insects["version"] + 1)
    new = {item["sha256"]: item for item in graft.images(grown["id"])}
    assert len(new) == len({item["sha256"] for item in old.values()}) + PERSONS
    assert new[flipped["sha256"]]["label"] == other
    assert new[flipped["sha256"]]["split"] == "val"
    added = [
        item for sha256, item in new.items() if sha256 not in {i["sha256"] for i in old.values()}
    ]
    assert {(item["split"], item["label"]) for item in added} == {("train", "bees")}

    job = graft.wait_for_job(made["job"])
    assert job["result"] == {"model": MODEL, "version": 2}
    assert job["spec"]["dataset"] == grown["id"]
    answers = graft.predict(MODEL, *pedestrians)["predictions"]
    assert [answer["label"] for answer in answers].count("bees") >= PERSONS - 1

    listed = graft._call("GET", f"/v1/models/{MODEL}/feedback?limit=100")["data"]
    assert {item["dataset"] for item in listed} == {grown["id"]}
    assert graft._call("GET", f"/v1/models/{MODEL}/feedback?pending=true")["data"] == []
    with pytest.raises(GraftProblem) as refused:
        graft._call("DELETE", f"/v1/models/{MODEL}/feedback/{listed[0]['id']}")
    assert refused.value.code == "feedback-used"
    assert not list((service.data_folder / "uploads").glob("feedback*")), "an archive was left"


def test_more_feedback_goes_on_from_the_newest_version(
    graft: Graft, trained: Json, pedestrians: list[bytes]
) -> None:
    graft.feedback(f"{MODEL}@1", pedestrians[0], "ants")
    made = graft.apply_feedback(f"{MODEL}@1", retrain=False)
    assert made["job"] is None
    grown = graft.wait_for_dataset(made["dataset"])
    assert grown["version"] == 3
    assert grown["classes"] == ["ants", "bees"]
