"""Training on a CUDA device: needs torch, torchvision, numpy, safetensors, pillow and pytest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.memory import gpu_memory
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.training.attempt import train
from jobs.training.augment import random_resized_crop
from jobs.training.interruption import Interruption
from jobs.training.spec import TrainSpec
from models_cache.artifacts import Artifact, read_artifact
from models_cache.backbones import build_backbone
from models_cache.blobs import BlobStore
from models_cache.classifiers import check_golden, load_classifier, outputs_of_classifier
from models_cache.engines import choose_engine
from models_cache.features import freeze
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
    lower = torch.cuda.is_bf16_supported(including_emulation=False)
    assert artifact.facts.numerics["dtype"] == ("bfloat16" if lower else "float32")
    weights_path = job.data_folder / "weights" / f"{_ARCHITECTURE}-drawn.pth"
    blobs = BlobStore(job.data_folder / "blobs")
    classifier = load_classifier(artifact, blobs, weights_path)
    check_golden(outputs_of_classifier(classifier, artifact.facts.preprocessing), artifact, blobs)
    check_golden(
        outputs_of_classifier(classifier.to(cuda), artifact.facts.preprocessing), artifact, blobs
    )


@pytest.mark.parametrize(
    "options",
    [
        {"augmentation": "trivialaugment", "mixup_alpha": 0.2, "ema_decay": 0.9},
        {"augmentation": "randaugment", "cutmix_alpha": 1.0, "class_weights": "balanced"},
        {"augmentation": "flip", "tune": 2},  # activations of the frozen stages are kept
    ],
)
def test_every_option_works_on_the_gpu(
    cuda: torch.device, job: TrainingJob, options: dict[str, object]
) -> None:
    job.spec["recipe"] = "finetune"
    job.spec["parameters"] = {"epochs": 3, "batch_size": 8, "lr_head": 1e-2, **options}
    assert run(job).facts.numerics["training_dtype"] == "bfloat16"


def test_crops_of_the_gpu_are_those_of_the_cpu(cuda: torch.device) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    draw = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    found = [
        random_resized_crop(pixels, draw, 64, 0.5, device).cpu().int()
        for device in (torch.device("cpu"), cuda)
    ]
    assert (found[0] - found[1]).abs().max() <= 1


def test_a_batch_that_does_not_fit_on_the_gpu_is_learned_from_in_parts(
    cuda: torch.device, job: TrainingJob
) -> None:
    job.spec["recipe"] = "scratch"
    job.spec["parameters"] = {"epochs": 1, "batch_size": 48}
    probe = torch.zeros(1, device=cuda)
    reserved = torch.cuda.memory_reserved(cuda) + probe.element_size()
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction((reserved + (96 << 20)) / total, cuda)
    try:
        spec = TrainSpec.load(job.next_spec())
        train(spec, ProgressWriter(job.attempt_folder / FILE_NAME), Interruption(None))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert "batch-halved" in [line.get("code") for line in job.lines()]


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


def test_frozen_passes_in_bfloat16_are_near_those_in_float32_and_repeatable(
    cuda: torch.device,
) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this device has no bfloat16")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    placed = freeze(build_backbone(_ARCHITECTURE), cuda)
    engine = choose_engine(placed, pixels[:2].to(cuda), SMALL)
    lower = replace(engine, dtype=torch.bfloat16)
    expected, found, again = (e.features(pixels, SMALL) for e in (engine, lower, lower))
    assert found.dtype == torch.float32
    assert torch.equal(found, again)
    assert not torch.equal(found, expected)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * largest)


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
