"""The rule that tells a better classifier from a lucky one."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.tasks.multilabel import mean_average_precision
from jobs.training.bootstrap import DRAWS, compare, mean_interval_95, resampled_means
from jobs.training.bootstrap_precision import (
    MOST_DRAWS,
    compare_precisions,
    resampled_mean_precisions,
)
from jobs.training.progressive import judge
from jobs.training.sources import SEEN


def test_equal_losses_are_not_better() -> None:
    losses = np.random.default_rng(0).exponential(1.0, 100)
    found = compare(losses, losses)
    assert (found.gain, found.gain_at_least, found.is_better) == (0.0, 0.0, False)


def test_small_gains_on_few_images_are_not_better_where_one_unseen_image_could_undo_them() -> None:
    gains = np.random.default_rng(4).uniform(0.0, 0.02, 20)
    gains[0] = 0.3
    assert np.quantile(resampled_means(gains), 0.05) > 0
    assert not compare(gains, np.zeros(20)).is_better


def test_networks_that_are_sure_of_themselves_are_seldom_called_better() -> None:
    # The tail of a fine-tuned network: a little better on most images, much worse on a few.
    random = np.random.default_rng(5)
    gains = np.where(random.random((200, 153)) < 0.02, -0.49, 0.01) + random.normal(
        0, 0.02, (200, 153)
    )
    called = [compare(row, np.zeros(153)).is_better for row in gains]
    assert np.mean(called) < 0.06  # 0.035; the bootstrap alone: 0.095


def test_a_clear_gain_is_better_and_its_reverse_is_not() -> None:
    worse = np.random.default_rng(0).exponential(1.0, 153)
    better = worse * 0.5
    assert compare(worse, better).is_better
    assert not compare(better, worse).is_better


def test_a_gain_by_one_image_of_many_is_noise() -> None:
    reference = np.zeros(153)
    reference[0] = 5.0
    found = compare(reference, np.zeros(153))
    assert found.gain > 0
    assert not found.is_better


def test_the_same_losses_always_give_the_same_answer() -> None:
    values = np.random.default_rng(1).normal(0.01, 0.1, 400)
    first, second = resampled_means(values), resampled_means(values.copy())
    assert first.shape == (DRAWS,)
    assert (first == second).all()


def test_interval_is_that_of_the_normal_distribution_where_that_holds() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 1000)
    low, high = mean_interval_95(values)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


@pytest.mark.parametrize("count", [20, 153])
def test_noise_is_seldom_called_better(count: int) -> None:
    random = np.random.default_rng(3)
    called = [
        compare(random.exponential(0.1, count), random.exponential(0.1, count)).is_better
        for _ in range(200)
    ]
    assert np.mean(called) <= 0.05


def test_no_image_decides_by_how_sure_its_wrong_answer_was() -> None:
    head = np.full(100, 0.3)
    network = np.full(100, 0.2)
    head[:5], network[:5] = 2.0, 9.0  # as wrong as the head, and surer of it
    assert not compare(head, network).is_better
    verdict = judge(head, network, "val", guess=np.log(2))
    assert verdict["better"]
    assert verdict["comparison"]["loss_at_most"] == pytest.approx(np.log(2) + 1)
    assert not judge(head, network, SEEN, guess=np.log(2))["better"]


def test_draws_of_precision_are_those_of_the_drawn_images() -> None:
    """Each is compared with average precision of the drawn rows themselves, ties included."""
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, (30, 3)) / 6.0, rng.random((30, 3)) < [0.5, 0.2, 0.05]
    found = resampled_mean_precisions(scores, truth)
    assert found.shape == (MOST_DRAWS,)
    again = np.random.default_rng(153).integers(0, 30, (MOST_DRAWS, 30))
    expected = [mean_average_precision(scores[rows], truth[rows]) for rows in again[:200]]
    assert found[:200] == pytest.approx(expected)


def test_a_better_order_is_better_beyond_noise_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((200, 4)) < 0.3
    good, poor = (truth + noise * rng.normal(size=truth.shape) for noise in (0.5, 2.0))
    found = compare_precisions(poor, good, truth)
    assert found.is_better
    assert found.gain >= found.gain_at_least
    assert not compare_precisions(good, poor, truth).is_better
    assert not compare_precisions(good, 3 * good, truth).is_better
