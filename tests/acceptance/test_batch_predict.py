"""Batch prediction over HTTP: with labels and without, killed, and as a call would answer."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Graft, GraftProblem, Json
from tests.acceptance.running import RunningService, running

pytestmark = [pytest.mark.slow, pytest.mark.shared]

MODEL = "insects"
BACKBONE = "squeezenet1_1"
KILLED_BEHIND = 64  # lines: the first job that has so many and more dies there, once


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[RunningService]:
    """A service whose first long batch prediction is killed."""
    folder = tmp_path_factory.mktemp("service") / "data"
    faults = {"GRAFT_FAULTS": f"predictions.before_fsync:{KILLED_BEHIND}=kill"}
    catalogue = shared / "weights" / "catalog.json"
    with running(folder, catalogue=catalogue, environment=faults) as started:
        yield started


@pytest.fixture(scope="module")
def insects(graft: Graft, shared: Path) -> Json:
    archive = shared / "data" / "hymenoptera.zip"
    return graft.wait_for_dataset(graft.upload(archive, name="insects")["id"])


@pytest.fixture(scope="module")
def trained(graft: Graft, insects: Json) -> Json:
    return graft.wait_for_job(graft.submit(insects["id"], backbone=BACKBONE, model=MODEL)["id"])


@pytest.fixture(scope="module")
def street(graft: Graft, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Photographs without labels, in folders that mean nothing."""
    path = tmp_path_factory.mktemp("street") / "street.zip"
    with (
        zipfile.ZipFile(shared / "data" / "PennFudanPed.zip") as source,
        zipfile.ZipFile(path, "w") as target,
    ):
        names = sorted(n for n in source.namelist() if "/PNGImages/" in n and n.endswith(".png"))
        for number, name in enumerate(names[:20]):
            folder = f"camera {number % 2}/{'deep/' * (number % 3)}"
            target.writestr(f"{folder}{number}.png", source.read(name))
        target.writestr("camera 0/again.png", source.read(names[0]))
        target.writestr("broken.jpg", b"no image")
        target.writestr("notes.txt", b"nothing")
    upload = graft.upload(path, name="street", labelled=False)
    return graft.wait_for_dataset(upload["id"])


def predict_all(graft: Graft, dataset: Json, **fields: Any) -> Json:  # noqa: ANN401
    job = graft.submit(dataset["id"], type="batch_predict", **({"model": MODEL} | fields))
    return graft.wait_for_job(job["id"])


def lines_of(graft: Graft, job: Json, folder: Path) -> list[Json]:
    path = graft.save_file(job["id"], "predictions.jsonl", folder / "predictions.jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_images_without_labels_are_predicted_as_a_call_would(
    graft: Graft, trained: Json, street: Json, shared: Path, tmp_path: Path
) -> None:
    assert (street["task"], street["classes"]) == ("unlabelled", [])
    assert street["splits"]["train"]["images"] == 20
    job = predict_all(graft, street, parameters={"max_error": 0.05})
    assert job["result"] == {
        "images": 20,
        "failed": 0,
        "abstained": job["result"]["abstained"],
        "files": ["predictions.jsonl", "predictions.csv"],
    }
    assert job["spec"]["version"] == 1
    rows = lines_of(graft, job, tmp_path)
    with zipfile.ZipFile(shared / "data" / "PennFudanPed.zip") as source:
        names = sorted(n for n in source.namelist() if "/PNGImages/" in n and n.endswith(".png"))
        for row in rows[::5]:
            number = 0 if row["path"].endswith("again.png") else int(Path(row["path"]).stem)
            called = graft.predict(MODEL, source.read(names[number]), max_error=0.05)
            (answer,) = called["predictions"]
            assert row["label"] == answer["label"]
            assert row["score"] == pytest.approx(answer["score"], abs=1e-4)
            assert row["out_of_distribution"] == answer["out_of_distribution"]
            assert len(row["scores"]) == 2
    table = graft.save_file(job["id"], "predictions.csv", tmp_path / "predictions.csv")
    with table.open(newline="", encoding="utf-8") as text:
        cells = list(csv.DictReader(text))
    assert [row["image"] for row in cells] == [row["image"] for row in rows]
    assert [row["label"] for row in cells] == [row["label"] for row in rows]


def test_a_killed_attempt_costs_nothing_that_was_written(
    graft: Graft, service: RunningService, trained: Json, insects: Json, tmp_path: Path
) -> None:
    done = predict_all(graft, insects)
    assert done["attempt"] == 2, "the attempt was killed in its third batch"
    progress = service.data_folder / "runs" / done["id"] / "2" / "progress.jsonl"
    lines = [json.loads(line) for line in progress.read_bytes().splitlines()]
    first = next(line["done"] for line in lines if line["kind"] == "progress")
    assert first > KILLED_BEHIND, "what was written is not predicted again"
    rows = lines_of(graft, done, tmp_path)
    assert [row["image"] for row in rows] == [item["id"] for item in graft.images(insects["id"])]


def test_one_split_of_a_labelled_data_set_and_the_same_accuracy(
    graft: Graft, trained: Json, insects: Json, tmp_path: Path
) -> None:
    job = predict_all(graft, insects, model=f"{MODEL}@1", parameters={"split": "val", "top_k": 1})
    rows = lines_of(graft, job, tmp_path)
    given = {item["id"]: item["label"] for item in graft.images(insects["id"], split="val")}
    assert given.keys() == {row["image"] for row in rows}
    right = sum(row["label"] == given[row["image"]] for row in rows)
    assert right / len(rows) == pytest.approx(trained["metrics"]["val/accuracy_top1"], abs=1e-9)
    assert {len(row["scores"]) for row in rows} == {1}


def test_what_cannot_be_done_is_refused_with_the_reason(
    graft: Graft, trained: Json, insects: Json, street: Json
) -> None:
    asked = {"type": "batch_predict", "model": MODEL}
    refused: list[tuple[Json, str]] = [
        ({"type": "batch_predict"}, "/model"),
        ({**asked, "recipe": "head"}, "/recipe"),
        ({**asked, "parameters": {"top_k": 0}}, "/parameters/top_k"),
        ({**asked, "parameters": {"k": 1}}, "/parameters/k"),
        ({"model": f"{MODEL}@1"}, "/model"),
    ]
    for fields, pointer in refused:
        with pytest.raises(GraftProblem) as problem:
            graft.submit(insects["id"], **fields)
        assert problem.value.problem["errors"][0]["pointer"] == pointer
    for fields, code in (
        ({"type": "batch_predict", "model": "nobody"}, "model-not-found"),
        ({"type": "batch_predict", "model": f"{MODEL}@99"}, "version-not-found"),
    ):
        with pytest.raises(GraftProblem) as problem:
            graft.submit(insects["id"], **fields)
        assert problem.value.code == code
    with pytest.raises(GraftProblem) as problem:
        graft.submit(street["id"], model="street")
    assert problem.value.code == "dataset-unlabelled"
