"""Fine-tuning: one function that reads as a story.

Everything random follows from (seed, epoch, step), so an attempt that goes on from a checkpoint
ends, on a CPU, with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from jobs.errors import Diverged
from jobs.recipes import FinetuneRecipe, ScratchRecipe
from jobs.training.augment import training_batch
from jobs.training.evaluate import predict_logits
from jobs.training.interruption import Interruption, StoppedOnRequest
from jobs.training.optimizer import prepare_modules, set_learning_rates
from jobs.training.schedule import Schedule
from jobs.training.state import TrainingState
from models_cache import faults
from models_cache.features import normalised
from models_cache.preprocessing import Preprocessing

_CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch


class Task(Protocol):
    """What the loop needs to know about a task type."""

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return what is minimised, a scalar, for logits `[B, C]`."""

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Return figures by name for logits `[N, C]`."""

    def rank(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Return what the better of two candidates has more of; not finite: not to be kept."""


class Reporter(Protocol):
    """Where progress goes; `jobs.progress.ProgressWriter` is one."""

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Say how much of the phase is done."""

    def metrics(self, step: int, metrics: dict[str, float], epoch: float | None = None) -> None:
        """Report figures measured at a step, after so many passes over the images."""

    def warning(self, code: str, message: str) -> None:
        """Report what the user should know."""


@dataclass(frozen=True)
class TrainingData:
    """What is learned from and what candidates are compared on.

    Args:
        dataset: All images.
        train: Positions of the images learned from, int64 `[N]`.
        held_out: Positions of the images that candidates are compared on.
        preprocessing: What turns pixels into input.
        held_out_name: `val`, or `holdout` where there is no val split; prefix of metrics.
    """

    dataset: LoadedDataset
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    preprocessing: Preprocessing
    held_out_name: str = "val"


@dataclass(frozen=True)
class Surroundings:
    """What an attempt provides besides model, data and recipe.

    Args:
        seed: The job's seed.
        training_dtype: Type of forward passes that are learned from.
        report: Where progress goes.
        interruption: Asked before every step whether to go on.
        save: Writes a checkpoint of the state durably.
        checkpoint_steps: Optimizer steps between checkpoints; None for one per epoch and minute.
    """

    seed: int
    training_dtype: torch.dtype
    report: Reporter
    interruption: Interruption
    save: Callable[[TrainingState], None]
    checkpoint_steps: int | None = None


@dataclass(frozen=True)
class _Training:
    """Everything that does not change while training."""

    task: Task
    data: TrainingData
    recipe: FinetuneRecipe | ScratchRecipe
    around: Surroundings
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        recipe, images, seed = self.recipe, len(self.data.train), self.around.seed
        schedule = Schedule(images, recipe.batch_size, recipe.epochs, recipe.warmup_fraction, seed)
        object.__setattr__(self, "schedule", schedule)


def fine_tune(
    state: TrainingState,
    task: Task,
    data: TrainingData,
    recipe: FinetuneRecipe | ScratchRecipe,
    around: Surroundings,
) -> None:
    """Train to the last epoch, or until the time is over; then load the best candidate.

    The state is as it was made, or as a checkpoint left it. With LP-FT what it holds at step 0
    (the fitted head) is candidate 0: on the held-out images the result is never worse. Random
    weights are no candidate.

    Raises:
        Diverged: The loss is NaN or infinite; the last checkpoint is from before.
        TimeLimitTooShort: The time is over before the first comparison.
        StoppedOnRequest: SIGTERM arrived; a checkpoint of this moment is on disk.
        InsufficientStorage: No space for a checkpoint.
    """
    training = _Training(task, data, recipe, around)
    per_epoch = training.schedule.steps_per_epoch
    first = 1 if isinstance(recipe, ScratchRecipe) else 0  # the first step that is a candidate
    while True:
        ended = state.step % per_epoch == 0 and state.step >= first
        if ended and state.compared_step != state.step:
            _compare(state, training)
            around.save(state)
        if state.step == training.schedule.total_steps or not _train_epoch(state, training):
            break
    if state.compared_step != state.step:  # out of time within an epoch: its steps count too
        _compare(state, training)
    state.load_best()


def _train_epoch(state: TrainingState, training: _Training) -> bool:
    """Train to the end of the current epoch; False if the time was over before."""
    around, schedule = training.around, training.schedule
    epoch, first = divmod(state.step, schedule.steps_per_epoch)
    plan = schedule.epoch(epoch)
    prepare_modules(state.model, training.recipe)
    saved = time.monotonic()
    for positions in plan.batches[first:]:
        faults.reach(f"train.step:{state.step}")
        if around.interruption.requested:
            around.save(state)
            raise StoppedOnRequest
        if around.interruption.out_of_time:
            around.interruption.poll()  # an error while there is no candidate
            done = f"after {state.step} of {schedule.total_steps} steps"
            around.report.warning("time-limit-reached", f"stopped {done}; the best is kept")
            return False
        _train_step(state, training, positions, plan.draws[positions])
        around.report.progress("steps", state.step, schedule.total_steps)
        if state.step % schedule.steps_per_epoch and _is_due(state.step, saved, around):
            around.save(state)
            saved = time.monotonic()
    mean_loss = state.epoch_loss / len(training.data.train)
    around.report.metrics(state.step, {"train/loss": mean_loss}, schedule.passes(state.step))
    state.epoch_loss = 0.0
    return True


def _train_step(
    state: TrainingState,
    training: _Training,
    positions: NDArray[np.int64],
    draws: NDArray[np.float64],
) -> None:
    """Make one optimizer step on the images at `positions` `[B]` of the training images."""
    data, recipe, step = training.data, training.recipe, state.step
    device = state.model.head.weight.device
    indices = data.train[positions]
    policy = (recipe.augmentation, recipe.crop_area_min)
    pixels = training_batch(data.dataset, indices, draws, data.preprocessing.crop_px, policy)
    images = normalised(pixels.to(device, non_blocking=True), data.preprocessing)  # [B, 3, H, W]
    targets = data.dataset.labels[torch.from_numpy(indices)].to(device)
    set_learning_rates(state.optimizer, training.schedule.factor(step))
    torch.manual_seed(training.schedule.torch_seed(step))  # dropout, stochastic depth
    dtype = training.around.training_dtype
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = state.model(images)
    loss = training.task.loss(logits.float(), targets, recipe.label_smoothing)
    state.optimizer.zero_grad()
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(step, str(value))
    loss.backward()
    state.optimizer.step()
    state.step += 1
    state.epoch_loss += value * len(positions)


def _compare(state: TrainingState, training: _Training) -> None:
    """Measure the present weights on the held-out images; keep them if they are the best."""
    data, task, around = training.data, training.task, training.around

    def stop_if_requested() -> None:
        if around.interruption.requested:
            around.save(state)
            raise StoppedOnRequest

    logits = predict_logits(
        state.model, data.dataset, data.held_out, data.preprocessing,
        training.recipe.batch_size, stop_if_requested,
    )  # fmt: skip
    metrics = task.metrics(logits, data.dataset.labels[torch.from_numpy(data.held_out)])
    named = {f"{data.held_out_name}/{name}": value for name, value in metrics.items()}
    finite = {name: value for name, value in named.items() if math.isfinite(value)}
    around.report.metrics(state.step, finite, training.schedule.passes(state.step))
    rank = task.rank(metrics)
    if not all(map(math.isfinite, rank)):
        if not state.best_metrics:
            raise Diverged(state.step, str(metrics["loss"]))
    elif not state.best_metrics or rank > task.rank(state.best_metrics):
        state.keep_as_best(metrics)
    state.compared_step = state.step
    around.interruption.has_model = True


def _is_due(step: int, saved: float, around: Surroundings) -> bool:
    if around.checkpoint_steps is not None:
        return step % around.checkpoint_steps == 0
    return time.monotonic() - saved >= _CHECKPOINT_SECONDS
