"""One optimizer step: whole or in parts, weighted and mixed, averaged, and where it must stop."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.errors import Diverged, ImageExceedsMemory
from jobs.recipes import FinetuneRecipe
from jobs.tasks.classification import Classification
from jobs.training.averaging import WeightAverage
from jobs.training.device import half_type
from jobs.training.loss_scale import LossScale
from jobs.training.mixing import Mixing, draw_mixing
from jobs.training.optimizer import build_optimizer, prepare_modules
from jobs.training.prefetch import made_ahead
from jobs.training.state import TrainingState
from jobs.training.step import Batch, Learner, compute_gradients, update_weights, within_memory
from models_cache.backbones import Classifier
from models_cache.features import is_out_of_memory

_CLASSES = ("a", "b", "c")


class Pooled(nn.Module):
    """The smallest backbone: a convolution, perhaps its BatchNorm, pooling."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.convolution(images)).relu().mean(dim=(2, 3))
        return features


def state_of(batch_norm: bool = False, ema_decay: float = 0.0) -> TrainingState:
    torch.manual_seed(0)
    model = Classifier(Pooled(batch_norm), 4, len(_CLASSES))
    nn.init.normal_(model.head.weight)
    recipe = FinetuneRecipe(epochs=1, tune=9, batch_norm="train", lr_head=0.1, lr_backbone=0.1)
    optimizer = build_optimizer(model, recipe)
    prepare_modules(model, recipe)
    average = WeightAverage(model, ema_decay) if ema_decay else None
    return TrainingState(model, optimizer, average)


def learner_of(state: TrainingState, weights: Tensor | None = None) -> Learner:
    task = Classification(_CLASSES)
    return Learner(
        inputs=lambda pixels: pixels.float().permute(0, 3, 1, 2) / 255,
        logits=state.model,
        loss=lambda logits, targets: task.loss(logits, targets, 0.1, weights),
        probabilities=task.probabilities,
        training_dtype=torch.float32,
    )


def batch_of(images: int = 7, mixing: Mixing | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.arange(images) % len(_CLASSES), mixing)


def train_step(state: TrainingState, batch: Batch, learner: Learner) -> None:
    update_weights(state, len(batch), compute_gradients(state, batch, learner))


def gradients(state: TrainingState) -> list[Tensor]:
    return [p.grad for p in state.model.parameters() if p.grad is not None]


MIXED = [None, draw_mixing(7, 1.0, 0.0, np.random.default_rng(0)),
         draw_mixing(7, 0.0, 1.0, np.random.default_rng(0))]  # fmt: skip


@pytest.mark.parametrize("mixing", MIXED, ids=["plain", "mixup", "cutmix"])
@pytest.mark.parametrize("most_images", [1, 2, 3, 6])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    most_images: int, mixing: Mixing | None
) -> None:
    weights = torch.tensor([0.5, 2.0, 1.0])
    whole, parted = state_of(), state_of()
    parted.most_images = most_images
    train_step(whole, batch_of(mixing=mixing), learner_of(whole, weights))
    train_step(parted, batch_of(mixing=mixing), learner_of(parted, weights))
    for expected, found in zip(gradients(whole), gradients(parted), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert parted.epoch_loss == pytest.approx(whole.epoch_loss, rel=1e-5)


def test_balanced_classes_count_the_same_and_images_one_on_average() -> None:
    task = Classification(_CLASSES)
    targets = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = task.balanced_weights(targets)
    totals = torch.bincount(targets) * weights
    torch.testing.assert_close(totals, torch.full((3,), 10 / 3))
    assert float(weights[targets].mean()) == pytest.approx(1.0)


def test_probabilities_lose_what_their_indices_lose() -> None:
    task, logits = Classification(_CLASSES), torch.randn(5, 3)
    targets, weights = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.5, 2.0, 1.0])
    indices = task.loss(logits, targets, 0.2, weights)
    probabilities = task.loss(logits, task.probabilities(targets), 0.2, weights)
    torch.testing.assert_close(indices, probabilities)


def test_statistics_of_single_images_are_not_learned() -> None:
    state = state_of(batch_norm=True)
    norm = state.model.backbone.get_submodule("norm")
    before = dict(norm.named_buffers())["running_mean"].clone()
    state.most_images = 1
    train_step(state, batch_of(), learner_of(state))
    assert torch.equal(dict(norm.named_buffers())["running_mean"], before)
    state.most_images = 4
    train_step(state, batch_of(), learner_of(state))
    assert norm.training
    assert not torch.equal(dict(norm.named_buffers())["running_mean"], before)


@pytest.mark.parametrize("most_images", [None, 2])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_any_weight_changes(
    where: str, most_images: int | None
) -> None:
    state = state_of(ema_decay=0.9)
    state.most_images = most_images
    train_step(state, batch_of(), learner_of(state))
    learner = learner_of(state)

    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        losses = learner.loss(logits, targets)
        # The square root is finite at 0, its slope is not
        return losses * math.nan if where == "loss" else losses + (logits[:, 0] * 0).sqrt()

    before = {name: value.clone() for name, value in state.tensors().items()}
    wrong = Learner(learner.inputs, learner.logits, broken, learner.probabilities, torch.float32)
    with pytest.raises(Diverged) as stopped:
        train_step(state, batch_of(), wrong)
    assert (stopped.value.step, state.step) == (1, 1)
    after = state.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_average_follows_slowly_and_faster_in_the_beginning() -> None:
    state = state_of(ema_decay=0.9)
    assert state.average is not None
    name = "head.weight"
    first = state.model.head.weight.detach().clone()
    train_step(state, batch_of(), learner_of(state))
    present = state.model.head.weight.detach()
    decay = 2 / 11  # smaller than 0.9: after one step an average of more would be the start
    expected = decay * first + (1 - decay) * present
    torch.testing.assert_close(state.average.values[name], expected)
    with state.candidate():
        torch.testing.assert_close(state.model.head.weight.detach(), expected)
    assert torch.equal(state.model.head.weight.detach(), present)


def test_an_average_is_the_best_candidate_and_is_restored_with_the_state() -> None:
    state, restored = state_of(batch_norm=True, ema_decay=0.9), state_of(True, 0.9)
    for _ in range(3):
        train_step(state, batch_of(), learner_of(state))
    state.keep_as_best({"loss": 1.0})
    restored.restore(state.tensors(), state.facts())
    for each in (state, restored):
        train_step(each, batch_of(), learner_of(each))
    one, other = state.tensors(), restored.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    best = {name: value for name, value in one.items() if name.startswith("best/")}
    assert not torch.equal(best["best/head.weight"], one["model/head.weight"])


def test_bfloat16_learns_nearly_the_same_from_float32_weights() -> None:
    full, lower = state_of(), state_of()
    compute_gradients(full, batch_of(), learner_of(full))
    learner = replace(learner_of(lower), training_dtype=torch.bfloat16)
    compute_gradients(lower, batch_of(), learner)
    for expected, found in zip(gradients(full), gradients(lower), strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)


class ThroughFloat16(torch.autograd.Function):
    """Gives gradients what a backward pass in float16 gives them: few bits, and an end."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return gradient.half().float()


def in_float16(state: TrainingState, factor: float = 1.0) -> Learner:
    learner = learner_of(state)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        through: Tensor = ThroughFloat16.apply(logits)
        return factor * learner.loss(through, targets)

    return replace(learner, loss=loss)


def test_small_gradients_outlive_float16_by_the_scale_of_the_loss() -> None:
    tiny = 1e-8  # below what float16 can say, as are the gradients of it
    exact, lost, scaled = state_of(), state_of(), state_of()
    scaled.loss_scale = LossScale()
    learner = learner_of(exact)
    learner = replace(learner, loss=lambda *each: tiny * learner_of(exact).loss(*each))
    compute_gradients(exact, batch_of(), learner)
    compute_gradients(lost, batch_of(), in_float16(lost, tiny))
    compute_gradients(scaled, batch_of(), in_float16(scaled, tiny))
    assert all(not gradient.any() for gradient in gradients(lost))
    for expected, found in zip(gradients(exact), gradients(scaled), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-3 * tiny)


def test_a_gradient_that_overflows_is_computed_again_with_half_the_scale() -> None:
    state = state_of()
    state.loss_scale = LossScale(2.0**24)
    train_step(state, batch_of(), in_float16(state))
    assert state.step == 1
    assert 1 < state.loss_scale.value < 2.0**24
    restored = state_of()
    restored.loss_scale = LossScale()
    restored.restore(state.tensors(), json.loads(json.dumps(state.facts())))
    assert restored.loss_scale == LossScale(state.loss_scale.value, 1)


def test_a_gradient_that_is_never_finite_stops_at_scale_1() -> None:
    state = state_of()
    state.loss_scale = LossScale(8.0)
    learner = learner_of(state)
    wrong = replace(
        learner, loss=lambda logits, targets: learner.loss(logits, targets) + logits.prod(1) ** 0.5
    )
    with pytest.raises(Diverged):
        train_step(state, batch_of(), wrong)
    assert (state.step, state.loss_scale.value) == (0, 8.0)  # the loss itself: nothing to halve
    broken = replace(
        learner,
        loss=lambda logits, targets: learner.loss(logits, targets) + (logits[:, 0] * 0).sqrt(),
    )
    with pytest.raises(Diverged):
        train_step(state, batch_of(), broken)
    assert (state.step, state.loss_scale.value) == (0, 1.0)


def test_the_scale_grows_again_after_many_steps() -> None:
    scale = LossScale(4.0)
    for _ in range(2000):
        scale.after_step()
    assert scale == LossScale(8.0, 0)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), None), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"),
     ((12, 0), "bfloat16")],
)  # fmt: skip
def test_older_cards_compute_in_float16_or_not_at_all_in_16_bits(
    capability: tuple[int, int], dtype: str | None
) -> None:
    assert half_type(capability) == dtype


@pytest.mark.parametrize(
    "sentence",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_libraries_of_cuda_run_out_of_memory_too(sentence: str) -> None:
    assert is_out_of_memory(RuntimeError(sentence))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def told(state: TrainingState, images: int, run: Callable[[], None]) -> list[str]:
    warnings: list[str] = []
    within_memory(state, images, lambda code, _message: warnings.append(code), run)
    return warnings


def test_a_batch_is_halved_until_it_fits() -> None:
    state = state_of()
    tried = []

    def run() -> None:
        tried.append(state.at_once(12))
        if tried[-1] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")

    assert told(state, 12, run) == ["batch-halved"] * 2
    assert tried == [12, 6, 3]
    assert state.facts()["most_images"] == 3


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def run() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    state = state_of()
    with pytest.raises(ImageExceedsMemory):
        told(state, 5, run)
    assert state.most_images == 1


def test_other_errors_are_not_a_lack_of_memory() -> None:
    def run() -> None:
        raise RuntimeError("could not create a primitive descriptor for a convolution")

    with pytest.raises(RuntimeError, match="descriptor"):
        told(state_of(), 5, run)


def test_batches_are_made_in_order_one_ahead_and_errors_arrive() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        if number == 4:
            raise ValueError("broken")
        made.append(number)
        return number * number

    batches = made_ahead(make, range(6))
    assert next(batches).take() == 0
    assert [next(batches).take() for _ in range(3)] == [1, 4, 9]
    with pytest.raises(ValueError, match="broken"):
        next(batches).take()
    assert made[:4] == [0, 1, 2, 3]


def test_a_batch_that_found_no_memory_is_made_again_beside_nothing() -> None:
    threads: list[bool] = []

    def make(number: int) -> int:
        threads.append(threading.current_thread() is threading.main_thread())
        if len(threads) < 3:
            raise MemoryError
        return number

    with closing(made_ahead(make, range(7, 8))) as batches:
        state, ahead = state_of(), next(batches)
        warnings: list[str] = []
        made = within_memory(state, 8, lambda code, _text: warnings.append(code), ahead.take)
    assert made == 7
    assert threads == [False, True, True]
    assert warnings == ["batch-halved"] * 2
    assert state.most_images == 2
