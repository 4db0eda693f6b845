"""How long a piece of work will still take, from what it has done so far.

Pure arithmetic over (clock, done): no files, no threads, no torch. Nothing is said before something
was measured, in this job or in an earlier one of its kind on this machine (`Rates`).

A fine-tuning job is weights -> decode -> features -> head -> train -> evaluate -> publish. Its plan
says how much each phase has to do; the seconds of one unit are measured in this attempt, and until
then they are those of the job before. Without one little follows from the feature pass about steps,
since its engine is another one (a step of mobilenet_v2 took 7 times the pass of its images on 2
cores): while steps are the larger part of such a job, nothing is said before training. A
comparison shows images to the network that learns, so that, until the second step is done, a step
is taken for a few such passes: one, and up to two for the gradients, fewer where a part of the
network is frozen.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

_LEARNING_PER_FROZEN = 2.3  # seconds of a forward pass: the network that learns, the frozen one
_HEAD_PER_FEATURES = 0.1  # hymenoptera with mobilenet_v2: 0.3 s beside 3 s of features
_PUBLISH_FORWARDS = 16.0  # golden outputs, hashes: 0.1 to 0.3 s on 2 cores
_ENOUGH_STEPS = 4
_REMEMBERED = 32  # the speed of a machine that others use as well changes


class Estimate(Protocol):
    """What estimates the time that is left."""

    def begin(self, phase: str) -> None:
        """Take note that a phase begins."""

    def advance(self, done: int, total: int | None) -> None:
        """Take note of how much of the phase is done."""

    def left_seconds(self) -> float | None:
        """Return the seconds until the end; None while nothing is known."""


class PhaseEstimate:
    """Of work whose phases have nothing in common: each is taken for all there is, and as steady.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._done: int = 0
        self._total: int | None = None

    def begin(self, _phase: str) -> None:
        """Start again."""
        self._started, self._done, self._total = self._clock(), 0, None

    def advance(self, done: int, total: int | None) -> None:
        """Take note of how much of the phase is done."""
        self._done, self._total = done, total

    def left_seconds(self) -> float | None:
        """Return the seconds until the phase ends; None before its first unit is done."""
        if self._total is None or self._done == 0:
            return None
        return (self._clock() - self._started) / self._done * (self._total - self._done)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How much the phases of a training attempt have to do.

    Args:
        images: Shown to the frozen network in phase `features`.
        steps: Optimizer steps of the whole training; 0 where only a head is fitted.
        steps_per_epoch: After so many steps candidates are compared.
        images_per_step: Batch size.
        forwards_per_step: What a step costs, in forward passes of its images.
        compares_first: Whether candidates are compared before the first step as well.
        compared_images: Held-out images that each comparison shows to the network.
        judged_images: Images that the result is evaluated on.
    """

    images: int
    steps: int = 0
    steps_per_epoch: int = 1
    images_per_step: int = 1
    forwards_per_step: float = 3.0
    compares_first: bool = False
    compared_images: int = 0
    judged_images: int = 0

    @property
    def is_mostly_features(self) -> bool:
        """Whether all that follows is likely to take less than the feature pass."""
        passes = self.steps * self.images_per_step * self.forwards_per_step
        passes += self.comparisons_left(None, 0) * self.compared_images + self.judged_images
        return _LEARNING_PER_FROZEN * passes <= self.images

    def comparisons_left(self, compared_step: int | None, steps_done: int) -> int:
        """Return how many comparisons follow.

        Args:
            compared_step: The step of the last one; None if there was none in this attempt.
            steps_done: How many steps are done.
        """
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        if compared_step is not None:
            return epochs - compared_step // self.steps_per_epoch
        if steps_done == 0:
            return epochs + self.compares_first
        return epochs - (steps_done - 1) // self.steps_per_epoch


@dataclass(frozen=True)
class Rates:
    """Seconds that a job needed; None where it measured nothing of the kind.

    Args:
        frozen_image: Of an image in phase `features`.
        compared_image: Of an image in a comparison of candidates.
        step: Of an optimizer step.
    """

    frozen_image: float | None = None
    compared_image: float | None = None
    step: float | None = None


class TrainingEstimate:
    """Of a fine-tuning attempt: the rest of all its phases together.

    In phase `train` a report of the same step again, or of step 0, ends a comparison.

    Args:
        plan: What there is to do.
        earlier: Of the last job of this kind on this machine.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        earlier: Rates = Rates(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._earlier = earlier
        self._clock = clock
        self._phase = ""
        self._began = clock()
        self._total: int | None = None
        self._reports: list[tuple[int, float]] = []  # (done, when) in this phase
        self._compared_step: int | None = None
        self._image_seconds: float | None = None  # of one forward pass in phase `features`
        self._step_seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._comparison_seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def begin(self, phase: str) -> None:
        """Take note that a phase begins."""
        self._phase, self._began = phase, self._clock()
        self._total, self._reports = None, []

    def advance(self, done: int, total: int | None) -> None:
        """Take note of how much of the phase is done; called for every batch and step."""
        now = self._clock()
        if self._phase == "train":
            self._measure_training(done, now)
        self._total = total
        # The first two tell where warming up ended, the last how far it is.
        self._reports = [*self._reports[:2], (done, now)]
        if self._phase == "features" and done != total and len(self._reports) == 3:
            (since_done, since), (done, at) = self._reports[1:]
            self._image_seconds = (at - since) / (done - since_done)

    def rates(self) -> Rates:
        """Return what this job needed; what it did not measure is as before."""
        plan, earlier = self._plan, self._earlier
        comparisons = self._comparison_seconds if plan.compared_images else ()
        return Rates(
            self._frozen_seconds(),
            _mean(comparisons) / plan.compared_images if comparisons else earlier.compared_image,
            _mean(self._step_seconds) if self._step_seconds else earlier.step,
        )

    def left_seconds(self) -> float | None:
        """Return the seconds until the job ends; None while nothing of the kind was measured."""
        parts = {
            "features": self._features_left,
            "head": self._head_left,
            "train": self._train_left,
            "evaluate": self._evaluate_left,
            "publish": self._publish_left,
        }
        names = list(parts)
        first = names.index(self._phase) if self._phase in parts else 0
        left = [parts[name]() for name in names[first:]]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) if len(known) == len(left) else None

    def _measure_training(self, done: int, now: float) -> None:
        if not self._reports:
            # Not where an epoch is one step: a resumed one could not be told from a comparison.
            if done == 0 or (self._plan.steps_per_epoch > 1 and self._ends_epoch(done)):
                self._compared_step = done
                self._comparison_seconds.append(now - self._began)
            return
        last_done, last_at = self._reports[-1]
        if done == last_done:
            self._compared_step = done
            self._comparison_seconds.append(now - last_at)
        elif len(self._reports) > 1:  # the first step also warms up
            self._step_seconds.append(now - last_at)

    def _ends_epoch(self, step: int) -> bool:
        return step % self._plan.steps_per_epoch == 0

    def _done(self, phase: str) -> int:
        return self._reports[-1][0] if self._reports and self._phase == phase else 0

    def _frozen_seconds(self) -> float | None:
        """Seconds of one image in phase `features`."""
        return self._earlier.frozen_image if self._image_seconds is None else self._image_seconds

    def _forward_seconds(self) -> float | None:
        """Seconds of one image through the network that learns; not those of the frozen engine."""
        plan = self._plan
        if self._comparison_seconds and plan.compared_images:
            return _mean(self._comparison_seconds) / plan.compared_images
        if self._earlier.compared_image is not None:
            return self._earlier.compared_image
        if self._step_seconds:
            images = plan.images_per_step * plan.forwards_per_step
            return _mean(self._step_seconds) / images
        if self._image_seconds is not None and plan.is_mostly_features:
            return _LEARNING_PER_FROZEN * self._image_seconds
        return None

    # -- what is left of each phase ----------------------------------------------------------

    def _features_left(self) -> float | None:
        left = self._plan.images - self._done("features")
        seconds = self._frozen_seconds()
        if left == 0:
            return 0.0
        return None if seconds is None else left * seconds

    def _head_left(self) -> float | None:
        done = self._done("head")
        if self._total and done:
            return (self._reports[-1][1] - self._began) / done * (self._total - done)
        seconds = self._frozen_seconds()
        return None if seconds is None else self._plan.images * seconds * _HEAD_PER_FEATURES

    def _train_left(self) -> float | None:
        plan, forward_seconds = self._plan, self._forward_seconds()
        if plan.steps == 0:
            return 0.0
        if forward_seconds is None:
            return None
        step_seconds = self._earlier.step
        if step_seconds is None:
            step_seconds = forward_seconds * plan.images_per_step * plan.forwards_per_step
        if len(self._step_seconds) >= _ENOUGH_STEPS:
            step_seconds = _mean(self._step_seconds)
        elif self._step_seconds:  # one that something else slowed down must not decide alone
            step_seconds = _mean([step_seconds, *self._step_seconds])
        comparison_seconds = forward_seconds * plan.compared_images
        done = self._done("train")
        left = plan.comparisons_left(self._compared_step, done)
        return (plan.steps - done) * step_seconds + left * comparison_seconds

    def _evaluate_left(self) -> float | None:
        forward_seconds = self._forward_seconds()
        if self._plan.steps == 0:
            return 0.0
        return None if forward_seconds is None else self._plan.judged_images * forward_seconds

    def _publish_left(self) -> float | None:
        seconds = self._forward_seconds() if self._plan.steps else self._frozen_seconds()
        return None if seconds is None else _PUBLISH_FORWARDS * seconds


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
