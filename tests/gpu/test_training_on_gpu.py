"""Training on a CUDA device: needs torch, torchvision, numpy, safetensors, pillow and pytest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from jobs.memory import gpu_memory
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.training.attempt import train
from jobs.training.interruption import Interruption
from jobs.training.spec import TrainSpec
from models_cache.artifacts import Artifact, read_artifact
from models_cache.backbones import build_backbone
from models_cache.blobs import BlobStore
from models_cache.classifiers import check_golden, load_classifier
from models_cache.features import choose_engine, freeze
from tests.training_jobs import SMALL, TrainingJob, store_dataset, training_spec, write_catalogue

pytestmark = pytest.mark.gpu

_ARCHITECTURE = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        if os.environ.get("GRAFT_REQUIRE_GPU") == "1":
            pytest.fail("GRAFT_REQUIRE_GPU=1, but torch finds no CUDA device")
        pytest.skip("no CUDA device")
    return torch.device("cuda:0")


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    manifest = store_dataset(tmp_path, {"train": 24, "val": 8})
    catalogue = write_catalogue(tmp_path / "source", _ARCHITECTURE)
    spec = training_spec(manifest, catalogue, architecture=_ARCHITECTURE, device="cuda:0")
    return TrainingJob(tmp_path, "job_1", spec)


def run(job: TrainingJob) -> Artifact:
    spec = TrainSpec.load(job.next_spec())
    progress = ProgressWriter(job.attempt_folder / FILE_NAME)
    result = train(spec, progress, Interruption(None))
    assert result["metrics"]["val/accuracy_top1"] == 1.0
    assert result["resources"]["peak_device_memory_bytes"] > 0
    return read_artifact(BlobStore(job.data_folder / "blobs"), result["artifact"]["digest"])


def test_driver_tells_the_memory_that_torch_sees(cuda: torch.device) -> None:
    free_bytes, total_bytes = torch.cuda.mem_get_info(cuda)
    memory = gpu_memory(0)
    assert memory is not None
    assert memory.total_bytes == pytest.approx(total_bytes, rel=0.05)
    assert memory.available_bytes == pytest.approx(free_bytes, rel=0.05)


@pytest.mark.parametrize("recipe", ["head", "finetune"])
def test_a_model_trained_on_the_gpu_gives_its_golden_outputs_on_the_cpu(
    cuda: torch.device, job: TrainingJob, recipe: str
) -> None:
    job.spec["recipe"] = recipe
    if recipe == "finetune":
        job.spec["parameters"] = {"epochs": 3, "batch_size": 8, "lr_head": 1e-2}
    artifact = run(job)
    assert artifact.facts.numerics["device"] == torch.cuda.get_device_name(cuda)
    weights_path = job.data_folder / "weights" / f"{_ARCHITECTURE}-drawn.pth"
    blobs = BlobStore(job.data_folder / "blobs")
    classifier = load_classifier(artifact, blobs, weights_path)
    check_golden(classifier, artifact, blobs)
    check_golden(classifier.to(cuda), artifact, blobs)


def test_features_of_the_gpu_are_those_of_the_cpu(cuda: torch.device) -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    found = []
    backbone = build_backbone(_ARCHITECTURE)
    for device in (torch.device("cpu"), cuda):
        placed = freeze(backbone, device)
        engine = choose_engine(placed, pixels[:2].to(device), SMALL)
        found.append(engine.features(pixels, SMALL))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_training_on_the_gpu_lowers_the_loss(cuda: torch.device, job: TrainingJob) -> None:
    job.spec["recipe"] = "scratch"
    job.spec["parameters"] = {"epochs": 20, "batch_size": 16, "batch_norm": "train"}
    run_result = TrainSpec.load(job.next_spec())
    progress = ProgressWriter(job.attempt_folder / FILE_NAME)
    train(run_result, progress, Interruption(None))
    losses = [
        line["metrics"]["train/loss"]
        for line in job.lines()
        if line["kind"] == "metrics" and "train/loss" in line["metrics"]
    ]
    assert losses[-1] < losses[0] / 2
