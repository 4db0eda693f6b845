"""Recipe `auto` in real child processes: what it offers, when, and what a kill changes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.datasets.manifest import Manifest
from jobs.training.progressive import judge
from jobs.training.sources import SEEN
from models_cache.artifacts import read_artifact
from models_cache.blobs import BlobStore
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
)

pytestmark = pytest.mark.slow

SHORT = {"epochs": 2, "batch_size": 8}


@pytest.fixture
def auto(tmp_path: Path, catalogue: Path) -> Callable[..., TrainingJob]:
    """Make a job of recipe `auto` on drawn images: `counts` per class and split."""

    def make(job_id: str, counts: dict[str, int], **different: Any) -> TrainingJob:  # noqa: ANN401
        manifest: Manifest = store_dataset(tmp_path, counts)
        spec = training_spec(
            manifest, catalogue, recipe="auto", **{"parameters": SHORT, **different}
        )
        return TrainingJob(tmp_path, job_id, spec)

    return make


def offers(job: TrainingJob) -> list[dict[str, Any]]:
    return [line for line in job.lines() if line["kind"] == "candidate"]


def test_head_is_offered_before_training_and_the_network_compared_with_it(
    auto: Callable[..., TrainingJob], children: TrainingChildren, tmp_path: Path
) -> None:
    job = auto("job_auto", {"train": 8, "val": 6})
    assert job.run(children) == 0
    lines = job.lines()
    kinds = [line.get("phase", line["kind"]) for line in lines]
    assert kinds.index("candidate") < kinds.index("train")
    (head,) = offers(job)
    result = job.result()
    blobs = BlobStore(tmp_path / "blobs")
    kinds = [read_artifact(blobs, line["artifact"]["digest"]).facts.kind for line in (head, result)]
    assert kinds == ["head", "whole"]
    promotion = result["promotion"]
    assert promotion["split"] == "val"
    assert promotion["comparison"]["images"] == 12
    assert promotion["comparison"]["draws"] == 10_000
    gain = head["metrics"]["val/loss"] - result["metrics"]["val/loss"]
    assert promotion["comparison"]["gain"] == pytest.approx(gain, abs=1e-6)
    winner = result if promotion["better"] else head
    assert promotion["metrics"] == winner["metrics"]


def test_head_of_auto_is_the_one_of_recipe_head(
    auto: Callable[..., TrainingJob], children: TrainingChildren
) -> None:
    job = auto("job_auto", {"train": 8, "val": 6})
    alone = TrainingJob(
        job.data_folder, "job_head", {**job.spec, "recipe": "head", "parameters": {"batch_size": 8}}
    )
    assert job.run(children) == 0
    assert alone.run(children) == 0
    (head,) = offers(job)
    names = ("val/accuracy_top1", "val/loss", "cv/loss", "head/l2")
    assert {n: head["metrics"][n] for n in names} == {
        n: alone.result()["metrics"][n] for n in names
    }


@pytest.mark.parametrize("point", ["train.after_candidate", "train.after_head", "train.step:1"])
def test_killed_attempt_offers_the_same_head_again_and_ends_the_same(
    auto: Callable[..., TrainingJob], children: TrainingChildren, point: str
) -> None:
    counts = {"train": 8, "val": 6}
    whole = auto("job_whole", counts)
    assert whole.run(children) == 0
    killed = auto("job_killed", counts)
    assert killed.run(children, f"{point}=kill") == -signal.SIGKILL
    (first,) = offers(killed)
    assert killed.run(children) == 0
    (again,) = offers(killed)
    assert again["artifact"] == first["artifact"]
    assert killed.result()["promotion"] == whole.result()["promotion"]


def test_test_split_is_reported_and_decides_nothing(
    auto: Callable[..., TrainingJob], children: TrainingChildren, tmp_path: Path
) -> None:
    with_test = auto("job_with", {"train": 8, "val": 6, "test": 4})
    without = auto("job_without", {"train": 8, "val": 6})
    assert with_test.run(children) == 0
    assert without.run(children) == 0
    chosen = [job.result()["promotion"] for job in (with_test, without)]
    compared = [{k: c[k] for k in ("better", "reason", "split", "comparison")} for c in chosen]
    assert compared[0] == compared[1]
    steps = [
        read_artifact(
            BlobStore(tmp_path / "blobs"), job.result()["artifact"]["digest"]
        ).facts.lineage["best_step"]
        for job in (with_test, without)
    ]
    assert steps[0] == steps[1]
    assert "test/accuracy_top1" in with_test.result()["metrics"]
    assert "test/accuracy_top1" in offers(with_test)[0]["metrics"]


def test_without_val_images_a_fifth_of_the_training_images_decides(
    auto: Callable[..., TrainingJob], children: TrainingChildren
) -> None:
    job = auto("job_auto", {"train": 10})
    assert job.run(children) == 0
    promotion = job.result()["promotion"]
    assert (promotion["split"], promotion["comparison"]["images"]) == ("holdout", 4)


def test_without_any_held_out_images_the_head_stays() -> None:
    losses = np.ones(30)
    assert not judge(losses, losses / 9, SEEN, guess=np.log(2))["better"]
    assert not judge(np.zeros(0), np.zeros(0), "val", guess=np.log(2))["better"]
    assert judge(losses, losses / 9, "val", guess=np.log(2))["better"]


def test_time_limit_before_the_first_step_ends_with_the_head(
    auto: Callable[..., TrainingJob], children: TrainingChildren
) -> None:
    job = auto("job_auto", {"train": 8, "val": 6})
    assert job.run(children, "train.after_head=kill") == -signal.SIGKILL
    job.spec["time_limit_seconds"] = 1e-6
    assert job.run(children) == 0
    result = job.result()
    assert "artifact" not in result
    assert not result["promotion"]["better"]
    assert result["promotion"]["metrics"] == offers(job)[0]["metrics"]
