"""What a step or an epoch does, as a pure function of its number.

Learning rates, the order of images and every random draw follow from (seed, epoch, step) alone
and never from what ran before: an attempt that resumes at any step does what it would have done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS_PER_IMAGE = 8
_MIXING = 1  # keeps these draws apart from those of `torch_seed`
_SEED_MASK = (1 << 64) - 1  # Philox keys are two words of 64 bits


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor on every learning rate at a step: linear warmup, then half a cosine.

    Args:
        step: The optimizer step about to be made, from 0.
        total_steps: Steps of the whole training.
        warmup_steps: Steps over which the factor rises; the last of them has factor 1.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine, one cycle).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Schedule:
    """Epochs and steps of one training.

    Args:
        images: Training images, N.
        batch_size: Largest number of images per step.
        epochs: Passes over the images.
        warmup_fraction: Part of all steps that is warmup.
        seed: The job's seed.
    """

    images: int
    batch_size: int
    epochs: int
    warmup_fraction: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(self.images / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def passes(self, step: int) -> float:
        """Return how many times a training has seen every image before a step."""
        return step / self.steps_per_epoch

    def factor(self, step: int) -> float:
        """Return the factor on every learning rate at a step."""
        warmup_steps = math.ceil(self.warmup_fraction * self.total_steps)
        return learning_rate_factor(step, self.total_steps, warmup_steps)

    def epoch(self, epoch: int) -> EpochPlan:
        """Return order and draws of an epoch, from 0."""
        generator = np.random.Generator(
            np.random.Philox(key=np.array([self.seed & _SEED_MASK, epoch], dtype=np.uint64))
        )
        order = generator.permutation(self.images)
        draws = generator.random((self.images, DRAWS_PER_IMAGE))
        # Batches of nearly equal size: a last batch of one image would be all noise.
        batches = tuple(np.array_split(order, self.steps_per_epoch))
        return EpochPlan(batches, draws)

    def torch_seed(self, step: int) -> int:
        """Return the seed of torch's generator for a step (dropout, stochastic depth)."""
        words = np.random.SeedSequence([self.seed & _SEED_MASK, step]).generate_state(2)
        return int(words[0]) << 31 ^ int(words[1])

    def mixing_generator(self, step: int) -> np.random.Generator:
        """Return what is drawn from when the images of a step are mixed with each other."""
        return np.random.default_rng([_MIXING, self.seed & _SEED_MASK, step])


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch does.

    Args:
        batches: Per step the positions of its images, int64 `[B]`, in `range(images)`.
        draws: Uniform numbers in 0..1 by image, float64 `[N, 8]`: the same for an image wherever
            in the epoch it stands.
    """

    batches: tuple[NDArray[np.int64], ...]
    draws: NDArray[np.float64]
