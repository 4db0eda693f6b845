"""How long a piece of work will still take, from what it has done so far.

Pure arithmetic over (clock, done): no files, no threads, no torch. Nothing is said before something
was measured.

A fine-tuning job is weights -> decode -> features -> head -> train -> evaluate -> publish. Its plan
says how much each phase has to do; the seconds of one unit are measured where the unit has been
done in this attempt and follow from a related one where not: a comparison shows images to the same
network as the feature pass, and a step costs a few forward passes of its images: one, and up to
two for the gradients, fewer where a part of the network is frozen.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_HEAD_PER_FEATURES = 0.1  # hymenoptera with mobilenet_v2: 0.3 s beside 3 s of features
_PUBLISH_FORWARDS = 16.0  # golden outputs, hashes: 0.1 to 0.3 s on 2 cores
_REMEMBERED_STEPS = 32  # the speed of a machine that others use as well changes


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

    def comparisons_left(self, steps_done: int) -> int:
        """Return the comparisons that follow the report of a step, its own epoch's included."""
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        if steps_done == 0:
            return epochs + self.compares_first
        return epochs - math.ceil(steps_done / self.steps_per_epoch) + 1


class TrainingEstimate:
    """Of a fine-tuning attempt: the rest of all its phases together.

    Args:
        plan: What there is to do.
        clock: Seconds that only grow.
    """

    def __init__(self, plan: TrainingPlan, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plan = plan
        self._phase = ""
        self._began = clock()
        self._total: int | None = None
        self._reports: list[tuple[int, float]] = []  # (done, when): first, first behind 0, last
        self._image_seconds: float | None = None  # of one forward pass
        self._first_step_seconds: float | None = None  # with the comparison before it, if any
        self._compared_first = False
        self._step_seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._epoch_end_seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)

    def begin(self, phase: str) -> None:
        """Take note that a phase begins."""
        self._phase, self._began = phase, self._clock()
        self._total, self._reports = None, []

    def advance(self, done: int, total: int | None) -> None:
        """Take note of how much of the phase is done; called for every batch and step."""
        now = self._clock()
        if self._phase == "train":
            self._measure_step(done, now)
        self._total = total
        self._reports = [*self._reports[:2], (done, now)]
        if self._phase == "features" and done != total:
            self._measure_images()

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
        left = [parts[name](name == self._phase) for name in names[first:]]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) if len(known) == len(left) else None

    # -- measuring ---------------------------------------------------------------------------

    def _measure_images(self) -> None:
        """Seconds per image, without those of the first batch, which also warms up."""
        if len(self._reports) == 3:
            (since_done, since), (done, at) = self._reports[1:]
            self._image_seconds = (at - since) / (done - since_done)

    def _measure_step(self, done: int, now: float) -> None:
        if not self._reports:
            self._first_step_seconds = now - self._began
            self._compared_first = self._plan.compares_first and done == 1
        elif done == self._reports[-1][0] + 1:
            seconds = now - self._reports[-1][1]
            at_epoch_end = self._reports[-1][0] % self._plan.steps_per_epoch == 0
            (self._epoch_end_seconds if at_epoch_end else self._step_seconds).append(seconds)

    def _costs(self) -> tuple[float, float] | None:
        """Return the seconds of a step and of a comparison."""
        plan = self._plan
        step_images = plan.forwards_per_step * plan.images_per_step
        image = self._image_seconds
        if self._step_seconds:
            step = sum(self._step_seconds) / len(self._step_seconds)
            image = step / step_images if image is None else image
        elif self._first_step_seconds is not None:
            compared = plan.compared_images * self._compared_first
            image = self._first_step_seconds / (step_images + compared)
            step = image * step_images
        elif image is not None:
            step = image * step_images
        else:
            return None
        return step, self._comparison_seconds(step, image)

    def _comparison_seconds(self, step_seconds: float, image_seconds: float) -> float:
        with_step = list(self._epoch_end_seconds)
        if not with_step and self._step_seconds and self._compared_first:
            assert self._first_step_seconds is not None
            with_step = [self._first_step_seconds]
        if not with_step:
            return self._plan.compared_images * image_seconds
        return max(0.0, sum(with_step) / len(with_step) - step_seconds)

    # -- what is left of each phase ----------------------------------------------------------

    def _features_left(self, is_now: bool) -> float | None:
        if self._image_seconds is None:
            done = is_now and bool(self._reports) and self._reports[-1][0] == self._total
            return 0.0 if done else None
        left = self._plan.images - (self._reports[-1][0] if is_now and self._reports else 0)
        return left * self._image_seconds

    def _head_left(self, is_now: bool) -> float | None:
        if is_now and self._reports and self._total and self._reports[-1][0] > 0:
            done, at = self._reports[-1]
            return (at - self._began) / done * (self._total - done)
        if self._image_seconds is None:
            return None
        return self._plan.images * self._image_seconds * _HEAD_PER_FEATURES

    def _train_left(self, is_now: bool) -> float | None:
        plan = self._plan
        if plan.steps == 0:
            return 0.0
        costs = self._costs()
        if costs is None:
            return None
        done = self._reports[-1][0] if is_now and self._reports else 0
        return (plan.steps - done) * costs[0] + plan.comparisons_left(done) * costs[1]

    def _evaluate_left(self, _is_now: bool) -> float | None:
        plan = self._plan
        if plan.steps == 0:
            return 0.0
        costs = self._costs()
        if costs is None or plan.compared_images == 0:
            return None
        return plan.judged_images * costs[1] / plan.compared_images

    def _publish_left(self, _is_now: bool) -> float | None:
        if self._image_seconds is not None:
            return self._image_seconds * _PUBLISH_FORWARDS
        costs = self._costs() if self._plan.steps else None
        if costs is None:
            return None
        return costs[0] / self._plan.forwards_per_step
