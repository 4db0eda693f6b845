"""Training children on a CUDA device: forked, killed, gone on, and with the same bits again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import forkserver
from jobs.executors.local import TRAINING_ENVIRONMENT
from jobs.executors.warm import WarmServer
from jobs.training.checkpoint import Checkpoints
from models_cache.durable import sha256_of_bytes
from tests.gpu import cuda_child
from tests.training_jobs import (
    REPOSITORY,
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)
from tests.waiting import until

pytestmark = pytest.mark.gpu

_ARCHITECTURE = "mobilenet_v3_small"
_STEPS = 6  # 12 training images, 4 per batch, 2 epochs
_START_SECONDS = 120.0  # of a process that imports torch


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def spec(data_folder: Path) -> dict[str, Any]:
    manifest = store_dataset(data_folder, {"train": 6, "val": 3})
    return training_spec(
        manifest,
        write_catalogue(data_folder / "source", _ARCHITECTURE),
        architecture=_ARCHITECTURE,
        device="cuda:0",
        recipe="finetune",
        parameters={
            "epochs": 2,
            "batch_size": 4,
            "lr_head": 1e-2,
            "lr_backbone": 1e-3,
            "batch_norm": "train",
            "ema_decay": 0.9,
            "augmentation": "crop",
        },
        checkpoint_steps=1,
    )


def bits(job: TrainingJob) -> dict[str, str]:
    """Return digests of the last state and of the published weights."""
    last = Checkpoints(job.run_folder / "checkpoints").newest()
    assert last is not None
    assert last.step == _STEPS
    found = {n: sha256_of_bytes(v.numpy().tobytes()) for n, v in last.tensors().items()}
    return {**found, "published": job.result()["artifact"]["files"]["model.safetensors"]["sha256"]}


@pytest.fixture(scope="module")
def uninterrupted(
    children: TrainingChildren, data_folder: Path, spec: dict[str, Any]
) -> dict[str, str]:
    job = TrainingJob(data_folder, "job_whole", dict(spec))
    assert job.run(children) == 0
    return bits(job)


def test_a_training_gives_the_same_bits_again(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, Any],
    uninterrupted: dict[str, str],
) -> None:
    job = TrainingJob(data_folder, "job_again", dict(spec))
    assert job.run(children) == 0
    assert bits(job) == uninterrupted


@pytest.mark.parametrize("fault", ["train.after_head=kill", "train.step:1=kill,train.step:4=kill"])
def test_a_killed_training_ends_on_the_same_card_with_the_bits_of_an_uninterrupted_one(
    children: TrainingChildren,
    data_folder: Path,
    spec: dict[str, Any],
    uninterrupted: dict[str, str],
    fault: str,
) -> None:
    job = TrainingJob(data_folder, f"job_{sha256_of_bytes(fault.encode())[:8]}", dict(spec))
    for _ in range(fault.count("kill")):
        assert job.run(children, fault) == -9
    assert job.run(children) == 0
    assert bits(job) == uninterrupted


def test_the_fork_server_touches_no_card_and_its_children_compute_on_it(
    cuda: torch.device, tmp_path: Path
) -> None:
    environment = {**os.environ, **TRAINING_ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    target = f"{cuda_child.__name__}:main"
    server = WarmServer(environment, target, forkserver.DEFAULT_PRELOAD)
    try:
        for number in range(2):  # the second: nothing of the first is left in the server
            answer, log = tmp_path / f"{number}.json", tmp_path / f"{number}.txt"
            identity = server.start(answer, log, 0)
            until(partial(ended, server, identity), seconds=_START_SECONDS)
            assert server.child(identity).status == 0, log.read_text()
            assert answer.read_text() == torch.cuda.get_device_name(cuda)
            assert card_files(server.process.pid) == []
    finally:
        server.close(2.0)


def ended(server: WarmServer, identity: int) -> bool:
    server.pump()
    return server.dead or server.child(identity).status is not None


def card_files(pid: int) -> list[str]:
    """Return the device files of NVIDIA's driver that a process has open."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith("/dev/nv")]
