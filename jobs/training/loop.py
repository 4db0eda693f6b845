"""Fine-tuning: one function that reads as a story.

Everything random follows from (seed, epoch, step), so an attempt that goes on from a checkpoint
ends, on a CPU, with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from jobs.errors import Diverged
from jobs.recipes import AutoRecipe, FinetuneRecipe, ScratchRecipe
from jobs.training.augment import Augmentation
from jobs.training.boundary import FrozenStages, compute_activations
from jobs.training.evaluate import predict_logits
from jobs.training.interruption import Interruption, StoppedOnRequest
from jobs.training.mixing import draw_mixing
from jobs.training.optimizer import prepare_modules, set_learning_rates
from jobs.training.prefetch import SideStream, made_ahead
from jobs.training.schedule import EpochPlan, Schedule
from jobs.training.state import TrainingState
from jobs.training.step import Batch, Learner, compute_gradients, update_weights, within_memory
from models_cache import faults
from models_cache.cut_network import cut_at_boundary, learning_names
from models_cache.features import normalised
from models_cache.preprocessing import Preprocessing

_CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch


class Task(Protocol):
    """What the loop needs to know about a task type."""

    def loss(
        self, logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Return what is minimised by image, `[B]`, for logits `[B, C]`."""

    def probabilities(self, targets: Tensor) -> Tensor:
        """Return targets as probabilities, `[B, C]`, which can be mixed."""

    def balanced_weights(self, targets: Tensor) -> Tensor:
        """Return what each class counts in the loss, `[C]`, so that all count the same."""

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

    def log(self, message: str) -> None:
        """Report a line of prose."""


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

    def targets(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the class indices of some images, int64 `[B]`."""
        return self.dataset.labels[torch.from_numpy(indices)]


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
        activations_folder: Where activations of frozen stages are kept; None to compute them in
            each epoch.
    """

    seed: int
    training_dtype: torch.dtype
    report: Reporter
    interruption: Interruption
    save: Callable[[TrainingState], None]
    checkpoint_steps: int | None = None
    activations_folder: Path | None = None


@dataclass(frozen=True)
class _Training:
    """Everything that does not change while training."""

    task: Task
    data: TrainingData
    recipe: FinetuneRecipe | ScratchRecipe
    around: Surroundings
    schedule: Schedule
    augmentation: Augmentation
    learner: Learner
    side_stream: SideStream
    boundary: FrozenStages | None = None

    @classmethod
    def of(
        cls,
        state: TrainingState,
        task: Task,
        data: TrainingData,
        recipe: FinetuneRecipe | ScratchRecipe,
        around: Surroundings,
    ) -> _Training:
        """Settle everything, and pass all images through the frozen stages if that pays."""
        device, weights = state.model.head.weight.device, None
        if recipe.class_weights == "balanced":
            weights = task.balanced_weights(data.targets(data.train)).to(device)

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            return task.loss(logits, targets, recipe.label_smoothing, weights)

        learner = Learner(
            inputs=lambda pixels: normalised(pixels, data.preprocessing),
            logits=state.model,
            loss=loss,
            probabilities=task.probabilities,
            training_dtype=around.training_dtype,
        )
        schedule = Schedule(
            len(data.train), recipe.batch_size, recipe.epochs, recipe.warmup_fraction, around.seed
        )
        crop_px = data.preprocessing.crop_px
        augmentation = Augmentation(recipe.augmentation, recipe.crop_area_min, crop_px, device)
        side_stream = SideStream(device)
        training = cls(task, data, recipe, around, schedule, augmentation, learner, side_stream)
        boundary = _frozen_stages(state, training)
        if boundary is None:
            return training
        learner = replace(learner, inputs=lambda kept: kept, logits=boundary.logits)
        return replace(training, learner=learner, boundary=boundary)

    def rank(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Return what the better of two epochs has more of."""
        if self.recipe.best_epoch == "loss":
            return (-metrics["loss"],)
        return self.task.rank(metrics)

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """Return what is learned from at a step of an epoch; called in another thread."""
        positions = plan.batches[step % self.schedule.steps_per_epoch]
        indices = self.data.train[positions]
        recipe, device = self.recipe, self.augmentation.device
        mixing = draw_mixing(
            len(indices), recipe.mixup_alpha, recipe.cutmix_alpha,
            self.schedule.mixing_generator(step),
        )  # fmt: skip
        draws = plan.draws[positions]
        with self.side_stream.beside():
            if self.boundary is None:
                images = self.augmentation.batch(self.data.dataset, indices, draws)
            else:
                views = np.array([self.augmentation.view(draw) for draw in draws])
                images = self.boundary.train.of(positions, views).to(device)
            targets = self.data.targets(indices).to(device)
        return Batch(
            self.side_stream.handed_over(images), self.side_stream.handed_over(targets), mixing
        )


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
    weights are no candidate, nor is the head with recipe `auto`, which has published it.

    Raises:
        Diverged: The loss is NaN or infinite; the last checkpoint is from before.
        TimeLimitTooShort: The time is over before the first comparison.
        StoppedOnRequest: SIGTERM arrived; a checkpoint of this moment is on disk.
        InsufficientStorage: No space for a checkpoint.
    """
    training = _Training.of(state, task, data, recipe, around)
    per_epoch = training.schedule.steps_per_epoch
    # The first step that is a candidate
    first = 1 if isinstance(recipe, (ScratchRecipe, AutoRecipe)) else 0
    while True:
        ended = state.step % per_epoch == 0 and state.step >= first
        if ended and state.compared_step != state.step:
            _compare(state, training)
            around.save(state)
            around.report.progress("steps", state.step, training.schedule.total_steps)
        if state.step == training.schedule.total_steps or _out_of_patience(state, training):
            break
        if not _train_epoch(state, training):
            break
    if state.compared_step != state.step:  # out of time within an epoch: its steps count too
        _compare(state, training)
    state.load_best()


def _out_of_patience(state: TrainingState, training: _Training) -> bool:
    """Tell whether too many epochs in a row gave no better candidate."""
    patience, per_epoch = training.recipe.patience_epochs, training.schedule.steps_per_epoch
    if not patience or state.best_step < 0 or state.step % per_epoch:
        return False
    waited = (state.step - state.best_step) // per_epoch
    if waited < patience:
        return False
    done = f"{state.step} of {training.schedule.total_steps} steps"
    training.around.report.log(f"stopped early after {done}: {waited} epochs without a better one")
    return True


def _train_epoch(state: TrainingState, training: _Training) -> bool:
    """Train to the end of the current epoch; False if the time was over before."""
    around, schedule = training.around, training.schedule
    epoch = state.step // schedule.steps_per_epoch
    plan = schedule.epoch(epoch)
    prepare_modules(state.model, training.recipe)
    saved = time.monotonic()
    steps = range(state.step, (epoch + 1) * schedule.steps_per_epoch)
    with closing(made_ahead(partial(training.batch, plan), steps)) as batches:
        for ahead in batches:
            faults.reach(f"train.step:{state.step}")
            if around.interruption.requested:
                around.save(state)
                raise StoppedOnRequest
            if around.interruption.out_of_time:
                around.interruption.poll()  # an error while there is no candidate
                done = f"after {state.step} of {schedule.total_steps} steps"
                around.report.warning("time-limit-reached", f"stopped {done}; the best is kept")
                return False
            _train_step(state, training, ahead.take)
            around.report.progress("steps", state.step, schedule.total_steps)
            if state.step % schedule.steps_per_epoch and _is_due(state.step, saved, around):
                around.save(state)
                saved = time.monotonic()
    mean_loss = state.epoch_loss / len(training.data.train)
    around.report.metrics(state.step, {"train/loss": mean_loss}, schedule.passes(state.step))
    state.epoch_loss = 0.0
    return True


def _train_step(state: TrainingState, training: _Training, take_batch: Callable[[], Batch]) -> None:
    """Make one optimizer step, with fewer images at once if they do not fit into memory."""
    warn = training.around.report.warning
    # A batch that is made beside a step may not find memory; the next step shall leave it some
    batch = within_memory(state, training.recipe.batch_size, warn, take_batch)
    set_learning_rates(state.optimizer, training.schedule.factor(state.step))

    def attempt() -> float:
        torch.manual_seed(training.schedule.torch_seed(state.step))  # dropout, stochastic depth
        return compute_gradients(state, batch, training.learner)

    loss = within_memory(state, len(batch), warn, attempt)
    update_weights(state, len(batch), loss)


def _compare(state: TrainingState, training: _Training) -> None:
    """Measure the present candidate on the held-out images; keep it if it is the best."""
    data, task, around = training.data, training.task, training.around
    try:
        with state.candidate():
            logits = _held_out_logits(state, training)
    except StoppedOnRequest:
        around.save(state)
        raise
    metrics = task.metrics(logits, data.targets(data.held_out))
    named = {f"{data.held_out_name}/{name}": value for name, value in metrics.items()}
    finite = {name: value for name, value in named.items() if math.isfinite(value)}
    around.report.metrics(state.step, finite, training.schedule.passes(state.step))
    rank = training.rank(metrics)
    if not all(map(math.isfinite, rank)):
        if not state.best_metrics:
            raise Diverged(state.step, str(metrics["loss"]))
    elif not state.best_metrics or rank > training.rank(state.best_metrics):
        state.keep_as_best(metrics)
    state.compared_step = state.step
    around.interruption.has_model = True


def _held_out_logits(state: TrainingState, training: _Training) -> Tensor:
    """Return the present model's logits of the held-out images, float32 `[N, C]` on the CPU."""
    data, around, batch_size = training.data, training.around, training.recipe.batch_size

    def stop_if_requested() -> None:
        if around.interruption.requested:
            raise StoppedOnRequest

    def attempt() -> Tensor:
        at_once = state.at_once(batch_size)
        if training.boundary is not None:
            return training.boundary.held_out_logits(at_once, stop_if_requested)
        return predict_logits(
            state.model, data.dataset, data.held_out, data.preprocessing, at_once,
            stop_if_requested,
        )  # fmt: skip

    images = min(batch_size, len(data.held_out))
    return within_memory(state, images, around.report.warning, attempt)


def _frozen_stages(state: TrainingState, training: _Training) -> FrozenStages | None:
    """Return what the frozen stages say of all images; None if it has to be computed each time."""
    data, recipe, around = training.data, training.recipe, training.around
    views, folder = training.augmentation.views, around.activations_folder
    if views is None or folder is None or recipe.mixup_alpha or recipe.cutmix_alpha:
        return None
    prepare_modules(state.model, recipe)
    backbone = state.model.backbone
    network = cut_at_boundary(backbone, learning_names(backbone))
    if network is None or recipe.epochs <= views:  # as many passes, and none saved
        return None
    device = training.augmentation.device

    def learned(view: int, places: NDArray[np.int64]) -> Tensor:
        around.interruption.poll()
        pixels = training.augmentation.pictures(data.dataset, data.train[places], view)
        return normalised(pixels, data.preprocessing)

    def held_out(_view: int, places: NDArray[np.int64]) -> Tensor:
        around.interruption.poll()
        crops = data.dataset.center_crops(data.held_out[places], data.preprocessing.crop_px)
        return normalised(crops.to(device), data.preprocessing)

    def attempt() -> FrozenStages | None:
        at_once = state.at_once(recipe.batch_size)
        kept = compute_activations(network, learned, len(data.train), views, folder, at_once)
        judged = compute_activations(network, held_out, len(data.held_out), 1, folder, at_once)
        if kept is None or judged is None:
            return None
        return FrozenStages(state.model, network, kept, judged)

    return within_memory(state, recipe.batch_size, around.report.warning, attempt)


def _is_due(step: int, saved: float, around: Surroundings) -> bool:
    if around.checkpoint_steps is not None:
        return step % around.checkpoint_steps == 0
    return time.monotonic() - saved >= _CHECKPOINT_SECONDS
