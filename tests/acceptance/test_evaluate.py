"""Evaluation as a job over HTTP: the figures of publication again, and those of other images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Graft, GraftProblem, JobFailed, Json
from tests.acceptance.running import RunningService, running
from tests.images import class_folders, shape_bytes, split_folders, zip_bytes
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

MODEL, LABELLER, BACKBONE = "shapes", "labeller", "squeezenet1_1"
KILLED_BEHIND = 32  # lines: the first evaluation that has so many dies there, once
KILLED_AT = f"predictions.before_fsync:{KILLED_BEHIND}=kill,evaluation.before_rename=kill"
#: Where float32 sums may differ by their order; what is chosen or counted may not.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[RunningService]:
    """A service whose first evaluation is killed twice."""
    folder = tmp_path_factory.mktemp("service") / "data"
    catalogue = shared / "weights" / "catalog.json"
    with running(folder, catalogue=catalogue, environment={"GRAFT_FAULTS": KILLED_AT}) as started:
        yield started


def uploaded(graft: Graft, folder: Path, files: dict[str, bytes], **how: Any) -> Json:  # noqa: ANN401
    path = folder / f"{how.pop('name')}.zip"
    path.write_bytes(zip_bytes(files))
    return graft.wait_for_dataset(graft.upload(path, name=path.stem, **how)["id"])


def evaluated(graft: Graft, reference: str, dataset: Json, split: str | None = None) -> Json:
    return graft.wait_for_job(graft.evaluate(reference, dataset["id"], split=split)["id"])


def file_of(graft: Graft, job: Json, folder: Path) -> Json:
    path = graft.save_file(job["id"], "evaluation.json", folder / "evaluation.json")
    value: Json = json.loads(path.read_bytes())
    return value


@pytest.fixture(scope="module")
def shapes() -> dict[str, bytes]:
    """Discs and squares; of those to judge by, five discs are called squares."""
    files = split_folders(train=12, val=20)
    wrong = {f"val/square/disc {i}.jpg": shape_bytes("disc", 900 + i) for i in range(5)}
    return {**files, **wrong}


@pytest.fixture(scope="module")
def dataset(
    graft: Graft, shapes: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Json:
    return uploaded(graft, tmp_path_factory.mktemp("shapes"), shapes, name="shapes")


@pytest.fixture(scope="module")
def trained(graft: Graft, dataset: Json) -> Json:
    return graft.wait_for_job(graft.submit(dataset["id"], backbone=BACKBONE, model=MODEL)["id"])


@pytest.fixture(scope="module")
def labelled(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Shapes with any number of labels; `round` and `angular` go with the first two."""
    labels = {"disc": "disc|round", "square": "square|angular", "cross": "angular", "stripes": ""}
    files: dict[str, bytes] = {}
    for split, first in (("train", 0), ("val", 500)):
        images = class_folders(tuple(labels), 10, first_seed=first)
        names = {name: name.replace("/", "-") for name in images}
        rows = [f"{names[name]},{labels[name.split('/')[0]]}" for name in images]
        files |= {f"{split}/{names[name]}": data for name, data in images.items()}
        files[f"{split}/metadata.csv"] = "\n".join(["file_name,labels", *rows]).encode()
    return uploaded(graft, tmp_path_factory.mktemp("labelled"), files, name="labelled")


@pytest.fixture(scope="module")
def labeller(graft: Graft, labelled: Json) -> Json:
    job = graft.submit(labelled["id"], backbone=BACKBONE, model=LABELLER)
    return graft.wait_for_job(job["id"])


def assert_same(found: Any, expected: Any, where: str = "") -> None:  # noqa: ANN401
    """Compare two JSON values: numbers up to the order of sums, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=CLOSE, rel=CLOSE), where
    else:
        assert found == expected, where


def test_the_split_of_publication_gives_its_evaluation_although_killed_twice(
    graft: Graft, service: RunningService, trained: Json, dataset: Json, tmp_path: Path
) -> None:
    job = evaluated(graft, MODEL, dataset)
    assert job["attempt"] == 3, "killed in its second batch, and while its result was written"
    progress = service.data_folder / "runs" / job["id"] / "2" / "progress.jsonl"
    lines = [json.loads(line) for line in progress.read_bytes().splitlines()]
    first = next(line["done"] for line in lines if line["kind"] == "progress")
    assert first > KILLED_BEHIND, "what was written is not asked again"
    published, found = graft.evaluation(MODEL, 1), file_of(graft, job, tmp_path)
    assert found["split"] == "val"
    assert published["most_confident_errors"], "five images have a false label"
    assert_same({name: found[name] for name in published}, published)
    for name in ("accuracy_top1", "loss", "macro_f1", "ece"):
        reported = trained["metrics"][f"val/{name}"]
        assert job["metrics"][f"val/{name}"] == pytest.approx(reported, abs=CLOSE)
    assert job["result"] == {
        "split": "val",
        "images": 45,
        "accuracy_interval_95": found["accuracy_interval_95"],
        "unknown_classes": [],
        "absent_classes": [],
        "set_aside_images": 0,
        "images_of_its_own_data": {"train": 0, "val": 45, "test": 0},
        "tuned_on_these_images": False,
        "files": job["result"]["files"],
    }
    there = {row["name"] for row in graft._list(f"/v1/jobs/{job['id']}/files")}
    assert {"evaluation.json", "confusion.svg", "reliability.svg"} <= there
    assert set(job["result"]["files"]) <= there
    drawn = graft.save_file(job["id"], "confusion.svg", tmp_path / "confusion.svg")
    assert drawn.read_bytes().startswith(b"<svg")


def test_images_that_a_temperature_was_fitted_on_are_cross_fitted_as_at_publication(
    graft: Graft, trained: Json, dataset: Json, tmp_path: Path
) -> None:
    parameters = {"epochs": 1, "batch_size": 8, "tune": 1, "augmentation": "none"}
    fields: Json = {"recipe": "finetune", "parameters": parameters, "promote": False}
    tuned = graft.submit(dataset["id"], backbone=BACKBONE, model=MODEL, **fields)
    version = graft.wait_for_job(tuned["id"])["result"]["version"]
    job = evaluated(graft, f"{MODEL}@{version}", dataset, "val")
    published, found = graft.evaluation(MODEL, version), file_of(graft, job, tmp_path)
    assert published["calibration"]["cross_fitted"]
    assert job["result"]["tuned_on_these_images"]
    assert_same({name: found[name] for name in published}, published)


def test_several_labels_give_the_evaluation_of_publication(
    graft: Graft, labeller: Json, labelled: Json, tmp_path: Path
) -> None:
    job = evaluated(graft, f"{LABELLER}@1", labelled)
    published, found = graft.evaluation(LABELLER, 1), file_of(graft, job, tmp_path)
    assert_same({name: found[name] for name in published}, published)
    reported = labeller["metrics"]["val/mean_average_precision"]
    assert job["metrics"]["val/mean_average_precision"] == pytest.approx(reported, abs=CLOSE)


def test_images_of_unknown_classes_are_reported_on_their_own(
    graft: Graft, trained: Json, shapes: dict[str, bytes], tmp_path: Path
) -> None:
    files = class_folders(("disc", "stripes"), 8, "test/", first_seed=5000)
    files |= class_folders(("disc", "stripes"), 4, "train/", first_seed=6000)
    learned = [name for name in shapes if name.startswith("train/disc/")][:3]
    files |= {f"test/disc/learned {i}.jpg": shapes[name] for i, name in enumerate(learned)}
    others = uploaded(graft, tmp_path, files, name="others")
    job = evaluated(graft, MODEL, others)
    found, result = file_of(graft, job, tmp_path), job["result"]
    assert (result["split"], result["images"], result["set_aside_images"]) == ("test", 11, 8)
    assert result["absent_classes"] == ["square"]
    assert result["unknown_classes"] == [{"class": "stripes", "images": 8}]
    assert result["images_of_its_own_data"] == {"train": 3, "val": 0, "test": 0}
    (strangers,) = found["unknown_classes"]
    assert sum(strangers["predicted"].values()) == 8
    assert found["classes"] == ["disc", "square"]
    assert sum(map(sum, found["confusion"])) == len(found["predictions"]) == 11
    assert found["accuracy_top1"] == found["confusion"][0][0] / 11
    warnings = [event for event in graft.events(job["id"]) if event["event"] == "warning"]
    assert [w["data"]["data"]["code"] for w in warnings] == ["evaluated-on-training-images"]


def test_what_says_nothing_is_refused_with_the_reason(
    graft: Graft, trained: Json, dataset: Json, labelled: Json, tmp_path: Path
) -> None:
    asked = {"type": "evaluate", "model": MODEL}
    for fields, pointer in (
        ({"type": "evaluate"}, "/model"),
        ({**asked, "recipe": "head"}, "/recipe"),
        ({**asked, "parameters": {"split": "holdout"}}, "/parameters/split"),
        ({**asked, "parameters": {"top_k": 1}}, "/parameters/top_k"),
    ):
        with pytest.raises(GraftProblem) as problem:
            graft.submit(dataset["id"], **fields)
        assert problem.value.problem["errors"][0]["pointer"] == pointer
    bare = uploaded(graft, tmp_path, {"1.jpg": shape_bytes("disc")}, name="bare", labelled=False)
    for reference, data, split, code in (
        ("nobody", dataset["id"], None, "model-not-found"),
        (f"{MODEL}@99", dataset["id"], None, "version-not-found"),
        (MODEL, "ds_nothing", None, "dataset-not-found"),
        (MODEL, bare["id"], None, "dataset-unlabelled"),
        (MODEL, labelled["id"], None, "task-mismatch"),
        (MODEL, dataset["id"], "test", "split-empty"),
    ):
        with pytest.raises(GraftProblem) as problem:
            graft.evaluate(reference, data, split=split)
        assert problem.value.code == code
    files = class_folders(("cross", "stripes"), 4)
    strange = uploaded(graft, tmp_path, files, name="strange")
    with pytest.raises(JobFailed) as failed:
        evaluated(graft, MODEL, strange)
    assert failed.value.job["error"]["code"] == "classes-unknown"


def test_an_evaluation_is_paused_resumed_cancelled_and_asked_for_again(
    graft: Graft, trained: Json, dataset: Json
) -> None:
    paused = graft.evaluate(f"{MODEL}@1", dataset["id"])
    graft.act(paused["id"], "pause")
    until(lambda: graft.job(paused["id"])["status"] == "paused", 30.0)
    graft.act(paused["id"], "resume")
    assert graft.wait_for_job(paused["id"])["result"]["images"] == 45
    job = graft.evaluate(f"{MODEL}@latest", dataset["id"], split="train")
    graft.act(job["id"], "cancel")
    with pytest.raises(JobFailed, match="cancelled"):
        graft.wait_for_job(job["id"])
    again = graft.wait_for_job(graft.act(job["id"], "retry")["id"])
    assert again["spec"]["version"] == job["spec"]["version"]
    assert again["result"]["images_of_its_own_data"]["train"] == again["result"]["images"] == 24


def test_the_command_prints_a_table(service: RunningService, trained: Json, dataset: Json) -> None:
    command = [sys.executable, "-P", "-m", "service.cli.main", "evaluate", MODEL, dataset["id"]]
    environment = {**os.environ, "GRAFT_URL": service.url, "COLUMNS": "100"}
    done = subprocess.run(
        [*command, "--split", "val"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "shapes@1, 45 images (val)" in done.stdout
    assert f"{trained['metrics']['val/accuracy_top1']:.4f} (" in done.stdout
    assert "square" in done.stdout
