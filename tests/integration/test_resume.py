"""A killed training goes on and ends with the same bits as one that was never interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.training.checkpoint import Checkpoints
from models_cache.durable import sha256_of_bytes
from tests.training_jobs import (
    REPOSITORY,
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)
from tests.waiting import until

pytestmark = pytest.mark.slow

_STEPS = 6  # 12 training images, 4 per batch, 2 epochs
# mobilenet_v3_small: BatchNorm, Dropout, convolutions and a linear layer before the head.
_ARCHITECTURE = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def spec(data_folder: Path) -> dict[str, object]:
    manifest = store_dataset(data_folder, {"train": 6, "val": 3})
    return training_spec(
        manifest,
        write_catalogue(data_folder / "source", _ARCHITECTURE),
        architecture=_ARCHITECTURE,
        recipe="finetune",
        parameters={
            "epochs": 2,
            "batch_size": 4,
            "lr_head": 1e-2,
            "lr_backbone": 1e-3,
            "batch_norm": "train",
        },
        checkpoint_steps=1,
    )


@pytest.fixture(scope="module")
def uninterrupted(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object]
) -> dict[str, object]:
    job = TrainingJob(data_folder, "job_whole", dict(spec))
    assert job.run(children) == 0
    return outcome(job)


def outcome(job: TrainingJob, steps: int = _STEPS) -> dict[str, object]:
    """Return what must be equal: published tensors, all of the last state, figures by step."""
    last = Checkpoints(job.run_folder / "checkpoints").newest()
    assert last is not None
    assert last.step == steps
    tensors = last.tensors()
    state = {name: sha256_of_bytes(value.numpy().tobytes()) for name, value in tensors.items()}
    measured: dict[tuple[int, str], float] = {}
    for line in job.all_lines():
        for name, value in line["metrics"].items() if line["kind"] == "metrics" else ():
            assert measured.setdefault((line["step"], name), value) == value
    assert {name for _, name in measured} >= {"train/loss", "val/loss"}
    published = job.result()["artifact"]["files"]["model.safetensors"]
    return {"published": published, "state": state, "measured": measured}


@pytest.mark.parametrize(
    "fault",
    [
        "train.after_head=kill",
        "train.step:0=kill",
        "train.step:1=kill,train.step:4=kill",
        "train.step:3=kill,checkpoint.before_fsync=kill",
        "train.step:5=kill,checkpoint.before_rename=kill,checkpoint.json.before_rename=kill",
    ],
)
def test_killed_training_ends_with_the_bits_of_an_uninterrupted_one(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, object],
    uninterrupted: dict[str, object],
    fault: str,
) -> None:
    job = TrainingJob(data_folder, f"job_{sha256_of_bytes(fault.encode())[:8]}", dict(spec))
    kills = fault.count("kill")
    for _ in range(kills):
        assert job.run(children, fault) == -9
    # Another machine's thread count must not matter: the recorded one is used.
    job.spec["threads"] = 2
    assert job.run(children, fault) == 0
    assert outcome(job) == uninterrupted


def test_a_damaged_checkpoint_costs_steps_and_no_bits(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, object],
    uninterrupted: dict[str, object],
) -> None:
    job = TrainingJob(data_folder, "job_damaged", dict(spec))
    assert job.run(children, "train.step:4=kill") == -9
    folder = job.run_folder / "checkpoints"
    newest = max(folder.glob("step-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert job.run(children) == 0
    assert outcome(job) == uninterrupted


def test_without_any_valid_checkpoint_training_starts_again(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, object],
    uninterrupted: dict[str, object],
) -> None:
    job = TrainingJob(data_folder, "job_lost", dict(spec))
    assert job.run(children, "train.step:2=kill") == -9
    for path in (job.run_folder / "checkpoints").glob("step-*.safetensors"):
        path.write_bytes(b"")
    assert job.run(children) == 0
    assert outcome(job) == uninterrupted


def test_the_head_is_not_fitted_again_after_its_checkpoint(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object]
) -> None:
    job = TrainingJob(data_folder, "job_head_kept", dict(spec))
    assert job.run(children, "train.after_head=kill") == -9
    assert job.run(children) == 0
    phases = [line["phase"] for line in job.lines() if line["kind"] == "phase"]
    assert phases == ["weights", "decode", "train", "evaluate", "publish"]


def test_a_checkpoint_of_another_configuration_is_not_used(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object]
) -> None:
    job = TrainingJob(data_folder, "job_changed", dict(spec))
    assert job.run(children, "train.step:3=kill") == -9
    job.spec["seed"] = 4
    assert job.run(children) == 0
    assert "checkpoint-ignored" in [line.get("code") for line in job.lines()]
    phases = [line["phase"] for line in job.lines() if line["kind"] == "phase"]
    assert "head" in phases


def test_after_a_change_of_configuration_new_checkpoints_are_gone_on_from(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object]
) -> None:
    job = TrainingJob(data_folder, "job_changed_twice", dict(spec))
    assert job.run(children, "train.step:5=kill") == -9
    job.spec["seed"] = 4
    assert job.run(children, "train.step:5=kill,train.step:2=kill") == -9
    assert job.run(children) == 0
    assert "checkpoint-ignored" not in [line.get("code") for line in job.lines()]
    said = [line["message"] for line in job.lines() if line["kind"] == "log"]
    assert said == ["going on from the checkpoint of step 2"]


def test_a_training_stopped_on_request_ends_with_the_bits_of_an_uninterrupted_one(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, object],
    uninterrupted: dict[str, object],
) -> None:
    job = TrainingJob(data_folder, "job_stopped", {**spec, "checkpoint_steps": 1000})
    child = job.start()
    until(lambda: [line for line in job.lines() if line.get("unit") == "steps"], 60)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 75
    job.spec["checkpoint_steps"] = 1
    assert job.run(children) == 0
    assert outcome(job) == uninterrupted


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_training_from_scratch_ends_with_the_bits_of_an_uninterrupted_one(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object], threads: int
) -> None:
    scratch = {
        **spec,
        "recipe": "scratch",
        "weights": None,
        "parameters": {"epochs": 2, "batch_size": 6},
        "threads": threads,
        "checkpoint_steps": 1000,  # only at the end of an epoch, of 2 steps
    }
    whole = TrainingJob(data_folder, f"job_whole_{threads}", dict(scratch))
    assert whole.run(children) == 0
    killed = TrainingJob(data_folder, f"job_killed_{threads}", dict(scratch))
    assert killed.run(children, "train.step:1=kill") == -9
    assert killed.run(children, "train.step:1=kill,train.step:3=kill") == -9
    assert killed.run(children) == 0
    assert outcome(killed, 4) == outcome(whole, 4)


_EVERYTHING: dict[str, object] = {
    "epochs": 6,
    "batch_size": 6,
    "lr_head": 1e-2,
    "lr_backbone": 1e-3,
    "batch_norm": "train",
    "ema_decay": 0.9,
    "augmentation": "trivialaugment",
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "patience_epochs": 2,
}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_training_with_every_option_ends_with_the_bits_of_an_uninterrupted_one(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object], seed: int
) -> None:
    # Memory for 6 images at once runs out at the first step, for 3 at once it does not.
    starved = "train.images:6=enomem"
    everything = {**spec, "parameters": _EVERYTHING, "checkpoint_steps": 1, "seed": seed}
    whole = TrainingJob(data_folder, f"job_every_option_{seed}", dict(everything))
    assert whole.run(children, starved) == 0
    assert "batch-halved" in [line.get("code") for line in whole.lines()]
    last = Checkpoints(whole.run_folder / "checkpoints").newest()
    assert last is not None
    steps = last.step
    assert steps < 12  # of 6 epochs: patience ended it
    at = sorted(np.random.default_rng(seed).choice(np.arange(1, steps), 3, replace=False))
    killed = TrainingJob(data_folder, f"job_every_option_killed_{seed}", dict(everything))
    faults = ",".join([starved, *(f"train.step:{step}=kill" for step in at)])
    for _ in at:
        assert killed.run(children, faults) == -9
    assert killed.run(children, faults) == 0
    assert outcome(killed, steps) == outcome(whole, steps)
    names = set(last.tensors())
    assert any(name.startswith("average/") for name in names)


# The gradient of Swin's table of relative positions: 49 x 49 pairs share 169 rows.
_GRADIENTS = """
import torch
from jobs.training.device import set_up
set_up(torch.device("cpu"), 2)
def gradient():
    torch.manual_seed(0)
    table = torch.randn(169, 24, requires_grad=True)
    (table[torch.randint(0, 169, (2401,))] * torch.randn(2401, 24)).sum().backward()
    return table.grad.numpy().tobytes()
print(len({gradient() for _ in range(50)}))
"""


def test_two_threads_add_up_gradients_of_indexed_values_in_one_order() -> None:
    command = [sys.executable, "-c", _GRADIENTS]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    assert int(ended.stdout) == 1


def test_later_attempts_stay_with_the_weights_of_the_first(
    children: TrainingChildren, data_folder: Path, spec: dict[str, object]
) -> None:
    job = TrainingJob(data_folder, "job_default", {**spec, "weights": "DEFAULT"})
    assert job.run(children, "train.after_head=kill") == -9
    other = write_catalogue(data_folder / "other", _ARCHITECTURE, "OTHER")
    catalogues = job.spec["weights_catalogues"]
    job.spec["weights_catalogues"] = [str(other), *catalogues]  # DEFAULT now means another
    assert job.run(children) == 0
    assert "checkpoint-ignored" not in [line.get("code") for line in job.lines()]
    resolved = next(line["resolved"] for line in job.lines() if line["kind"] == "resolved")
    assert resolved["weights"]["name"] == "DRAWN"
    new = TrainingJob(data_folder, "job_default_new", dict(job.spec))
    assert new.run(children) == 0
    resolved = next(line["resolved"] for line in new.lines() if line["kind"] == "resolved")
    assert resolved["weights"]["name"] == "OTHER"
