"""Training on a CUDA device: precision, memory and options, with drawn images."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.errors import Diverged, ImageExceedsMemory, OutOfMemory
from jobs.gpus import gpu_memory, visible_gpus
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.recipes import FinetuneRecipe
from jobs.tasks.classification import Classification
from jobs.training.attempt import train
from jobs.training.batched_crops import resized
from jobs.training.device import half_type, set_up
from jobs.training.interruption import Interruption
from jobs.training.loss_scale import LossScale
from jobs.training.optimizer import build_optimizer, prepare_modules
from jobs.training.spec import TrainSpec
from jobs.training.state import TrainingState
from jobs.training.step import Batch, Learner, compute_gradients, update_weights
from models_cache.artifacts import Artifact, read_artifact
from models_cache.backbones import build_backbone, build_classifier
from models_cache.blobs import BlobStore
from models_cache.classifiers import check_golden, load_classifier, outputs_of_classifier
from models_cache.devices import choose_device
from models_cache.engines import choose_engine
from models_cache.features import freeze, normalised
from tests.training_jobs import SMALL, TrainingJob, store_dataset, training_spec, write_catalogue

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default:.*does not have a deterministic implementation"),
]

_ARCHITECTURE = "mobilenet_v3_small"


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


def test_driver_tells_of_the_cards_that_torch_sees_in_the_same_order(cuda: torch.device) -> None:
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert len(gpus) == torch.cuda.device_count()
    for index, name in enumerate(gpus):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        memory = gpu_memory(name)
        assert memory is not None, f"NVML does not know {name}"
        assert memory.total_bytes == pytest.approx(total_bytes, rel=0.05)
        assert memory.available_bytes == pytest.approx(free_bytes, rel=0.05, abs=1 << 30)


def test_memory_that_a_training_takes_is_missed_by_the_driver(cuda: torch.device) -> None:
    name = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))[0]
    held = torch.empty(1 << 30, dtype=torch.uint8, device=cuda)
    with_it = gpu_memory(name)
    del held
    torch.cuda.empty_cache()
    without = gpu_memory(name)
    assert with_it is not None
    assert without is not None
    assert without.available_bytes - with_it.available_bytes > 1 << 29


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
    expected = half_type(torch.cuda.get_device_capability(cuda)) or "float32"
    assert run(job).facts.numerics["training_dtype"] == expected


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_device_of_the_settings_is_a_card_with_its_number(cuda: torch.device, name: str) -> None:
    device = choose_device(name)
    assert device == cuda
    assert set_up(device, 1).device == torch.cuda.get_device_name(cuda)


def test_crops_of_the_gpu_are_those_of_the_cpu(cuda: torch.device) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    cuts, flips = [pixels[0], pixels[1, :40, 7:99], pixels[2, 1:]], [False, True, True]
    found = [resized(cuts, flips, 64, device).cpu().int() for device in (torch.device("cpu"), cuda)]
    assert (found[0] - found[1]).abs().max() <= 1


def test_a_batch_that_does_not_fit_on_the_gpu_is_learned_from_in_parts(
    cuda: torch.device, job: TrainingJob
) -> None:
    job.spec["recipe"] = "scratch"  # pictures of 224 px
    job.spec["parameters"] = {"epochs": 1, "batch_size": 48, "batch_norm": "train"}
    peaks: list[int] = []
    warnings: list[list[str]] = []
    for limited in (False, True):
        release(cuda)
        if limited:  # half of what is above the network, its optimizer and the libraries' own
            total_bytes = torch.cuda.get_device_properties(cuda).total_memory
            limit_bytes = max(peaks[0] // 2, torch.cuda.memory_reserved(cuda) + (192 << 20))
            torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes, cuda)
        whole = TrainingJob(job.data_folder, f"job_{limited}", job.spec)
        spec = TrainSpec.load(whole.next_spec())
        progress = ProgressWriter(whole.attempt_folder / FILE_NAME)
        result = train(spec, progress, Interruption(None))
        peaks.append(result["resources"]["peak_device_memory_bytes"])
        warnings.append([line["code"] for line in whole.lines() if line["kind"] == "warning"])
    if peaks[0] < 384 << 20:
        pytest.skip(f"a whole batch takes {peaks[0]} bytes: no limit tells half of it apart")
    assert "batch-halved" not in warnings[0]
    assert "batch-halved" in warnings[1]
    assert peaks[1] < peaks[0]


def release(cuda: torch.device) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)


def test_one_image_that_does_not_fit_on_the_gpu_is_an_error(
    cuda: torch.device, job: TrainingJob
) -> None:
    job.spec["recipe"] = "scratch"
    job.spec["parameters"] = {"epochs": 1, "batch_size": 48}
    total_bytes = torch.cuda.get_device_properties(cuda).total_memory
    limit_bytes = torch.cuda.memory_reserved(cuda) + (24 << 20)  # the network, not its optimizer
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes, cuda)
    spec = TrainSpec.load(job.next_spec())
    with pytest.raises((OutOfMemory, ImageExceedsMemory)):
        train(spec, ProgressWriter(job.attempt_folder / FILE_NAME), Interruption(None))


def learning(cuda: torch.device, dtype: torch.dtype) -> tuple[TrainingState, Callable[[], float]]:
    """Return a network that draws nothing at random, and what computes its gradients."""
    torch.manual_seed(0)
    model = build_classifier("resnet18", 2).to(cuda)
    torch.nn.init.normal_(model.head.weight, std=0.01)
    recipe = FinetuneRecipe(epochs=1, tune=99, batch_norm="train")
    scale = LossScale.needed_for(dtype)
    state = TrainingState(model, build_optimizer(model, recipe), loss_scale=scale)
    prepare_modules(model, recipe)
    task = Classification(("a", "b"))
    learner = Learner(
        inputs=lambda pixels: normalised(pixels, SMALL),
        logits=model,
        loss=lambda logits, targets: task.loss(logits, targets, 0.0, None),
        probabilities=task.probabilities,
        training_dtype=dtype,
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (16, 64, 64, 3), generator=generator, dtype=torch.uint8)
    batch = Batch(images.to(cuda), torch.arange(16, device=cuda) % 2, None)
    return state, lambda: compute_gradients(state, batch, learner)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_give_nearly_the_gradient_of_float32(
    cuda: torch.device, dtype: torch.dtype
) -> None:
    if half_type(torch.cuda.get_device_capability(cuda)) is None:
        pytest.skip("this card is older than 16 bits in tensor cores")
    found = []
    for each in (torch.float32, dtype):
        state, compute = learning(cuda, each)
        assert math.isfinite(compute())
        gradients = [p.grad.flatten() for p in state.model.parameters() if p.grad is not None]
        found.append(torch.cat(gradients))
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.85  # in bfloat16 0.94 on a CPU


def test_what_is_not_finite_on_the_gpu_stops_before_any_weight_changes(
    cuda: torch.device,
) -> None:
    state, compute = learning(cuda, torch.float32)
    update_weights(state, 16, compute())
    with torch.no_grad():
        state.model.head.weight[0, 0] = torch.inf
    before = {name: value.clone() for name, value in state.model.named_parameters()}
    with pytest.raises(Diverged) as stopped:
        update_weights(state, 16, compute())
    assert (stopped.value.step, state.step) == (1, 1)
    after = dict(state.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_features_of_the_gpu_are_those_of_the_cpu(cuda: torch.device) -> None:
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
