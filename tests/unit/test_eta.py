"""The estimate of the time that is left, over synthetic jobs whose end is known."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from jobs.eta import PhaseEstimate, Rates, TrainingEstimate, TrainingPlan
from jobs.training.rates import RatesFolder

HYMENOPTERA = TrainingPlan(
    images=397,
    steps=48,
    steps_per_epoch=8,
    images_per_step=32,
    compares_first=True,
    compared_images=153,
    judged_images=153,
)


@dataclass
class Job:
    """Does a plan at given speeds and keeps what the estimate said, in a time of its own.

    Args:
        plan: What there is to do.
        image_seconds: Of one forward pass of the network that learns.
        frozen_seconds: Of one forward pass in the feature pass.
        forwards_per_step: How a step compares to the forward passes of its images.
        cached: Whether the features are there.
        slower: Factor by step on the seconds of steps, if the machine changes.
        resumed_at: The step of the checkpoint that it goes on from; None for a new job.
        earlier: What the job before needed.
    """

    plan: TrainingPlan
    image_seconds: float = 0.008
    frozen_seconds: float = 0.004
    forwards_per_step: float = 3.0
    cached: bool = False
    slower: dict[int, float] = field(default_factory=dict)
    resumed_at: int | None = None
    earlier: Rates = field(default_factory=Rates)
    now: float = 100.0
    said: list[tuple[float, float | None]] = field(default_factory=list)

    def run(self) -> Job:
        self.estimate = TrainingEstimate(self.plan, self.earlier, lambda: self.now)
        if self.resumed_at is None:
            self.features()
            self.head()
        if self.plan.steps:
            self.train()
            self.begin("evaluate")
            self.work(self.plan.judged_images * self.image_seconds)
        self.begin("publish")
        self.work(20 * self.frozen_seconds)
        return self

    def work(self, seconds: float) -> None:
        self.now += seconds

    def begin(self, phase: str) -> None:
        self.estimate.begin(phase)
        self.look()

    def report(self, done: int, total: int) -> None:
        self.estimate.advance(done, total)
        self.look()

    def look(self) -> None:
        self.said.append((self.now, self.estimate.left_seconds()))

    def features(self) -> None:
        self.begin("features")
        for start in range(0, 0 if self.cached else self.plan.images, 32):
            self.report(start, self.plan.images)
            warm_up = 1.5 if start == 0 else 1.0
            self.work(warm_up * self.frozen_seconds * min(32, self.plan.images - start))
        self.report(self.plan.images, self.plan.images)

    def head(self) -> None:
        self.begin("head")
        for penalty in range(8):  # the search ends early
            self.report(penalty, 13)
            self.work(0.02)

    def train(self) -> None:
        plan = self.plan
        self.begin("train")
        first = self.resumed_at or 0
        if first == 0 and plan.compares_first:
            self.work(plan.compared_images * self.image_seconds)
            self.report(0, plan.steps)
        for step in range(first + 1, plan.steps + 1):
            factor = self.forwards_per_step * self.slower.get(step, 1.0)
            warm_up = 2.0 if step == first + 1 else 1.0
            self.work(warm_up * plan.images_per_step * self.image_seconds * factor)
            self.report(step, plan.steps)
            if step % plan.steps_per_epoch == 0:
                self.work(plan.compared_images * self.image_seconds)
                self.report(step, plan.steps)

    def errors(self) -> list[float]:
        """Return what was said behind the first tenth against the truth, as part of the whole."""
        began, whole = 100.0, self.now - 100.0
        behind = [(at, left) for at, left in self.said if began + 0.1 * whole <= at < self.now]
        silent = [at for at, left in behind if left is None]
        assert all(at < began + 0.2 * whole for at in silent)
        return [abs(left - (self.now - at)) / whole for at, left in behind if left is not None]


@pytest.mark.parametrize("forwards_per_step", [1.2, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("taken_for", [1.0, 1.2])
@pytest.mark.parametrize("cached", [False, True])
def test_fine_tuning_is_estimated_within_a_quarter_behind_its_first_tenth(
    forwards_per_step: float, taken_for: float, cached: bool
) -> None:
    plan = replace(HYMENOPTERA, forwards_per_step=taken_for * forwards_per_step)
    job = Job(plan, forwards_per_step=forwards_per_step, cached=cached).run()
    assert max(job.errors()) < 0.25
    assert statistics.median(job.errors()) < 0.02


@pytest.mark.parametrize(
    "plan",
    [
        replace(HYMENOPTERA, steps=4800, steps_per_epoch=800),  # many steps before a comparison
        replace(HYMENOPTERA, compared_images=5000, judged_images=9000),  # mostly comparisons
        replace(HYMENOPTERA, images=20_000, steps=48),  # mostly the feature pass
        replace(HYMENOPTERA, images_per_step=1, steps=244 * 3, steps_per_epoch=244),
    ],
)
def test_jobs_of_other_shapes_are_estimated_within_a_quarter(plan: TrainingPlan) -> None:
    assert max(Job(plan, forwards_per_step=2.2).run().errors()) < 0.25


def test_head_alone_is_estimated_within_a_quarter() -> None:
    job = Job(TrainingPlan(images=397)).run()
    assert max(job.errors()) < 0.25


def test_from_scratch_the_first_step_tells_about_comparisons_too() -> None:
    plan = replace(HYMENOPTERA, images=0, compares_first=False)
    job = Job(plan, resumed_at=0).run()
    assert max(job.errors()) < 0.1


def test_resumed_training_is_estimated_from_its_own_steps() -> None:
    job = Job(HYMENOPTERA, resumed_at=19).run()
    assert max(job.errors()) < 0.1


def test_nothing_is_said_before_something_was_measured() -> None:
    job = Job(HYMENOPTERA, cached=True).run()
    before_the_first_step = [left for at, left in job.said if at < 100.5]
    assert before_the_first_step
    assert set(before_the_first_step) == {None}


def test_job_after_another_of_its_kind_is_estimated_from_its_start() -> None:
    first = Job(HYMENOPTERA).run()
    again = Job(HYMENOPTERA, earlier=first.estimate.rates()).run()
    assert all(left is not None for _, left in again.said)
    assert max(again.errors()) < 0.05
    cached = Job(HYMENOPTERA, cached=True, earlier=first.estimate.rates()).run()
    assert cached.estimate.rates().frozen_image == first.estimate.rates().frozen_image
    slower = Job(
        HYMENOPTERA, image_seconds=0.024, frozen_seconds=0.012, earlier=first.estimate.rates()
    ).run()
    assert max(slower.errors()[40:]) < 0.25  # what is measured wins over what was


def test_rates_are_kept_by_kind_and_damaged_ones_are_none(tmp_path: Path) -> None:
    folder, rates = RatesFolder(tmp_path / "rates"), Rates(0.1, None, 2.0)
    assert folder.read({"batch": 1}) == Rates()
    folder.write({"batch": 1}, rates)
    assert folder.read({"batch": 1}) == rates
    assert folder.read({"batch": 2}) == Rates()
    (file,) = (tmp_path / "rates").iterdir()
    for damaged in (b"", b"[]", b'{"other": 1}', b"\xff"):
        file.write_bytes(damaged)
        assert folder.read({"batch": 1}) == Rates()


def test_steady_work_counts_down_and_ends_near_zero() -> None:
    job = Job(HYMENOPTERA).run()
    in_training = [left for at, left in job.said if left is not None and at > 120.0]
    assert in_training == sorted(in_training, reverse=True)
    assert 0.0 <= in_training[-1] < 0.5


def test_machine_that_becomes_slower_is_followed() -> None:
    plan = replace(HYMENOPTERA, steps=480, steps_per_epoch=80)
    job = Job(plan, slower=dict.fromkeys(range(100, 481), 3.0)).run()
    assert max(job.errors()[140:]) < 0.25


def test_single_phase_is_taken_as_steady() -> None:
    now = 0.0
    estimate = PhaseEstimate(lambda: now)
    estimate.begin("bytes")
    assert estimate.left_seconds() is None
    now = 2.0
    estimate.advance(100, 500)
    assert estimate.left_seconds() == 8.0
    estimate.advance(100, None)
    assert estimate.left_seconds() is None
