"""A race in real child processes: what it says, how it goes on, what it leaves behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.datasets.manifest import Manifest
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)

pytestmark = pytest.mark.slow

ARCHITECTURES = ("squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of three small networks with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    entries = []
    for architecture in ARCHITECTURES:
        written = write_catalogue(folder, architecture)
        entries += json.loads(written.read_text())["weights"]
    written.write_text(json.dumps({"weights": entries}))
    return written


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return store_dataset(tmp_path, {"train": 12, "val": 3, "test": 3})


def race_job(
    data_folder: Path, manifest: Manifest, catalogue: Path, job_id: str = "job_race", **more: object
) -> TrainingJob:
    entrants = [
        {"architecture": a, "weights": "DRAWN", "parameters": 1000 * i, "gflops": 0.1 * (i + 1)}
        for i, a in enumerate(ARCHITECTURES)
    ]
    spec = {
        **training_spec(manifest, catalogue, architecture=ARCHITECTURES[0]),
        "kind": "race",
        "parameters": {"folds": 3, "batch_size": 8},
        "entrants": entrants,
        "rank_by": "loss",
        "learning_curve": "best",
        **more,
    }
    return TrainingJob(data_folder, job_id, spec)


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k != "feature_seconds"} for row in result["ranking"]]
    kept = {k: v for k, v in result.items() if k not in ("at", "resources")}
    return {**kept, "ranking": rows}


def test_race_ranks_all_backbones_out_of_fold_and_recommends_one(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue, learning_curve="all")
    assert job.run(children) == 0
    result = job.result()
    assert {row["backbone"] for row in result["ranking"]} == set(ARCHITECTURES)
    assert [row["rank"] for row in result["ranking"]] == [1, 2, 3]
    losses = [row["loss"] for row in result["ranking"]]
    assert losses == sorted(losses)
    assert result["ranking"][0]["indistinguishable_from_best"]
    assert result["images"] == 24  # val and test are left alone
    assert all(row["feature_seconds"] > 0 for row in result["ranking"])
    assert result["recommendation"]["backbone"] in ARCHITECTURES
    assert result["recommendation"]["more_images"]
    assert result["next_engine"]["architecture"] == result["recommendation"]["backbone"]
    assert result["resources"]["peak_memory_bytes"] > 0
    assert [curve["backbone"] for curve in result["learning_curves"]] == [
        row["backbone"] for row in result["ranking"]
    ]
    lines = job.lines()
    assert [line["phase"] for line in lines if line["kind"] == "phase"] == [
        "weights",
        "probes",
        "learning-curve",
    ]
    work = [line for line in lines if line["kind"] == "progress" and line["unit"] == "gflops"]
    assert work[-1]["done"] == work[-1]["total"]
    assert [line["done"] for line in work] == sorted(line["done"] for line in work)


def test_head_on_a_raced_backbone_starts_from_its_features(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue)
    assert job.run(children) == 0
    cached = sorted((tmp_path / "cache" / "features").iterdir())
    for row in job.result()["ranking"]:
        architecture = row["backbone"]
        spec = training_spec(
            manifest, catalogue, architecture=architecture, parameters={"batch_size": 8}
        )
        head = TrainingJob(tmp_path, f"job_{architecture}", spec)
        assert head.run(children) == 0
        seen = [line for line in head.lines() if line.get("unit") == "images"]
        assert all(line["done"] == line["total"] for line in seen)
    assert sorted((tmp_path / "cache" / "features").iterdir()) == cached


@pytest.mark.parametrize("point", ["race.after_features", "race.after_probe"])
def test_killed_race_goes_on_and_says_what_an_uninterrupted_one_says(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren, point: str
) -> None:
    whole = race_job(tmp_path, manifest, catalogue, "job_whole")
    assert whole.run(children) == 0
    killed = race_job(tmp_path / "other", manifest, catalogue)
    other = store_dataset(tmp_path / "other", {"train": 12, "val": 3, "test": 3})
    assert other.digest == manifest.digest
    assert killed.run(children, f"{point}=kill") == -signal.SIGKILL
    probed = len([line for line in killed.lines() if line["kind"] == "checkpoint"])
    assert probed == (1 if point == "race.after_probe" else 0)
    assert killed.run(children) == 0
    again = [line["step"] for line in killed.lines() if line["kind"] == "checkpoint"]
    assert again == list(range(probed + 1, 4))
    assert without_seconds(killed.result()) == without_seconds(whole.result())


def test_backbone_without_weights_is_out_and_named(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue)
    missing = {
        "architecture": "resnet18",
        "weights": "IMAGENET1K_V1",
        "parameters": 11_000_000,
        "gflops": 1.8,
    }
    job.spec["entrants"] = [missing, *job.spec["entrants"][:1]]
    assert job.run(children) == 0
    failures = job.result()["failures"]
    assert [failure["backbone"] for failure in failures] == ["resnet18"]
    assert failures[0]["error"]["code"] == "weights-unavailable"
    assert "out-of-the-race" in [line.get("code") for line in job.lines()]


def test_race_of_backbones_without_weights_fails_with_the_reason(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue)
    job.spec["entrants"] = [
        {"architecture": "resnet18", "weights": "IMAGENET1K_V1", "parameters": 1, "gflops": 1.8}
    ]
    assert job.run(children) == 0
    assert job.lines()[-1]["code"] == "weights-unavailable"


def test_time_limit_ends_a_race_with_those_that_were_looked_at(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue)
    assert job.run(children, "race.after_probe=kill") == -signal.SIGKILL
    job.spec["time_limit_seconds"] = 1e-6
    assert job.run(children) == 0
    assert [row["backbone"] for row in job.result()["ranking"]] == [ARCHITECTURES[0]]
    assert "time-limit-reached" in [line.get("code") for line in job.lines()]


def test_time_limit_before_the_first_probe_fails_the_race(
    tmp_path: Path, manifest: Manifest, catalogue: Path, children: TrainingChildren
) -> None:
    job = race_job(tmp_path, manifest, catalogue, time_limit_seconds=1e-6)
    assert job.run(children) == 0
    assert job.lines()[-1]["code"] == "time-limit-too-short"
