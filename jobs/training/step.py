"""One optimizer step: gradients of a batch, at once or in as many parts as memory needs."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import Diverged, ImageExceedsMemory
from jobs.training.mixing import Mixing
from jobs.training.optimizer import fixed_statistics
from jobs.training.state import TrainingState
from models_cache import faults
from models_cache.features import is_out_of_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """The images of one step, B of them.

    Args:
        images: What `Learner.logits` takes, `[B, ...]`.
        targets: Class indices int64 `[B]`.
        mixing: How they are mixed with each other, if they are.
    """

    images: Tensor
    targets: Tensor
    mixing: Mixing | None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Learner:
    """How images and targets become a loss.

    Args:
        inputs: Makes what the network takes from rows of a batch's images.
        logits: Makes logits `[R, C]` from that.
        loss: Of logits and targets (indices `[R]` or probabilities `[R, C]`), by image `[R]`.
        probabilities: Makes probabilities `[R, C]` from indices `[R]`.
        training_dtype: Type of forward passes.
    """

    inputs: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    training_dtype: torch.dtype


def compute_gradients(state: TrainingState, batch: Batch, learner: Learner) -> float:
    """Put the gradient of a batch's mean loss into the parameters; return the loss, in nats.

    No weight changes. The device is looked at once: for loss and norm together.

    Raises:
        Diverged: The loss or its gradient is NaN or infinite.
        RuntimeError: As torch raises it where memory runs out; see `within_memory`.
    """
    while True:
        loss, norm = _loss_and_norm(state, batch, learner)
        if math.isfinite(loss) and math.isfinite(norm):
            return loss
        scale = state.loss_scale
        if not math.isfinite(loss) or scale is None or not scale.halve():
            raise Diverged(state.step, str(norm if math.isfinite(loss) else loss))


def update_weights(state: TrainingState, images: int, loss: float) -> None:
    """Make the optimizer step of gradients that `compute_gradients` found.

    Memory that runs out here is not a matter of fewer images at once: the optimizer's moments may
    have changed already, and the attempt ends.

    Args:
        state: With the gradients.
        images: Of the batch.
        loss: Of the batch, in nats.
    """
    state.optimizer.step()
    state.step += 1
    state.epoch_loss += loss * images
    if state.loss_scale is not None:
        state.loss_scale.after_step()
    if state.average is not None:
        state.average.update(state.step)


def _loss_and_norm(state: TrainingState, batch: Batch, learner: Learner) -> tuple[float, float]:
    """Return the loss of a batch and the norm of its gradient, which is in the parameters."""
    state.optimizer.zero_grad()
    count = math.ceil(len(batch) / state.at_once(len(batch)))
    parts = np.array_split(np.arange(len(batch)), count)
    scale = 1.0 if state.loss_scale is None else state.loss_scale.value
    with fixed_statistics(state.model, len(parts[-1]) == 1):
        losses = [_accumulate(batch, rows, learner, scale) for rows in parts]
    gradients = [
        p.grad for g in state.optimizer.param_groups for p in g["params"] if p.grad is not None
    ]
    if state.loss_scale is not None:
        state.loss_scale.undo(gradients)
    norm = torch.nn.utils.get_total_norm(gradients)
    loss, norm_value = torch.stack([torch.stack(losses).sum(), norm]).tolist()
    return loss, norm_value


def _accumulate(batch: Batch, rows: NDArray[np.int64], learner: Learner, scale: float) -> Tensor:
    """Add the gradient of some images' part of the batch's mean loss, scaled; return that part."""
    faults.reach(f"train.images:{len(rows)}")

    def load(chosen: NDArray[np.int64]) -> Tensor:
        return learner.inputs(_rows(batch.images, chosen))

    def probabilities(chosen: NDArray[np.int64]) -> Tensor:
        return learner.probabilities(_rows(batch.targets, chosen))

    if batch.mixing is None:
        images, targets = load(rows), _rows(batch.targets, rows)
    else:
        images = batch.mixing.images(load, rows)
        targets = batch.mixing.targets(probabilities, rows, images.shape[-1])
    dtype = learner.training_dtype
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = learner.logits(images)
    # A sum over the batch's size, not a mean over the part's: parts add up to the whole
    loss = learner.loss(logits.float(), targets).sum() / len(batch)
    (loss * scale if scale != 1 else loss).backward()
    return loss.detach()


def _give_back_memory(device: torch.device) -> None:
    """Let others have what is free in our allocators: oneDNN maps memory of its own, for code."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _rows(values: Tensor, rows: NDArray[np.int64]) -> Tensor:
    if len(rows) == len(values) and rows[0] == 0 and (np.diff(rows) == 1).all():
        return values
    return values[torch.from_numpy(rows).to(values.device, non_blocking=True)]


def within_memory(
    state: TrainingState, images: int, warn: Callable[[str, str], None], run: Callable[[], T]
) -> T:
    """Return what `run` returns, with half as many images at once whenever memory runs out.

    Args:
        state: Its `most_images` says how many images are tried, and is lowered.
        images: How many `run` is about.
        warn: Told a code and a sentence when fewer images are tried.
        run: Leaves the state as it was if memory runs out.

    Raises:
        ImageExceedsMemory: Not even one image fits.
    """
    while True:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here the error, and with it the activations that its traceback holds, is gone
        state.optimizer.zero_grad()
        device = state.model.head.weight.device
        _give_back_memory(device)
        tried = state.at_once(images)
        if tried == 1:
            raise ImageExceedsMemory(str(device))
        state.most_images = tried // 2
        warn(
            "batch-halved",
            f"{tried} images at once do not fit into the memory of {device}: from step "
            f"{state.step} on at most {state.most_images}; an optimizer step is as before",
        )
