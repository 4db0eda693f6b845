"""Figures against counts by hand and against brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.evaluation.calibrating import (
    COOLEST,
    cross_fitted,
    fit_temperature,
    log_probabilities,
    reliability,
)
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.ranking import two_class_curves
from jobs.evaluation.selective import levels, upper_bounds
from jobs.tasks.classification import Classification, wilson_interval
from models_cache.calibration import Calibration, Level


def judged(logits: torch.Tensor, targets: torch.Tensor, split: str = "val") -> JudgedImages:
    """Return judged images whose features are drawn."""
    count = len(targets)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(count, 8))).float()
    ids = [chr(ord("i") + index) for index in range(count)]
    return JudgedImages(split, ids, targets, logits, features, torch.arange(count) % 5)


def drawn(count: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw logits, and targets from the very probabilities that they stand for."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    gumbel = rng.gumbel(size=logits.shape)
    return logits, (logits + gumbel).argmax(axis=1)


def test_an_evaluation_counts_every_image_once() -> None:
    task = Classification(("a", "b", "c"))
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0], [0, 0, 2.0]])
    targets = torch.tensor([0, 1, 1, 2])
    found = task.evaluation(judged(logits, targets), None)
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["accuracy_top1"] == 0.75
    assert found["accuracy_top5"] is None
    low, high = found["accuracy_interval_95"]
    assert low == pytest.approx(0.3006, abs=1e-3)
    assert high == pytest.approx(0.9544, abs=1e-3)
    b = found["per_class"][1]
    assert (b["precision"], b["recall"], b["support"]) == (1.0, 0.5, 2)
    assert b["f1"] == pytest.approx(2 / 3)
    # F1: a 2 * 1/2 * 1 / (3/2), b 2/3, c 1
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    wrong = {
        "image": "k",
        "label": "b",
        "predicted": "a",
        "score": pytest.approx(math.exp(2) / (math.exp(2) + 2)),
    }
    assert found["predictions"][2] == wrong
    assert found["most_confident_errors"] == [wrong]
    assert found["roc"] is None
    assert found["calibration"]["fitted_on"] is None


def test_errors_are_listed_from_the_most_confident_one() -> None:
    logits = torch.tensor([[0.5, 0.0], [3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    found = Classification(("a", "b")).evaluation(judged(logits, torch.tensor([1, 1, 1, 1])), None)
    assert [row["image"] for row in found["most_confident_errors"]] == ["j", "l", "i"]


def test_a_constant_model_has_no_luck_in_its_top_five() -> None:
    task = Classification([f"class {index}" for index in range(10)])
    targets = torch.arange(10)
    constant = task.evaluation(judged(torch.zeros(10, 10), targets), None)
    assert constant["accuracy_top5"] == 0.0
    logits = torch.arange(10.0).repeat(10, 1)  # the five likeliest are classes 5 to 9
    assert task.evaluation(judged(logits, targets), None)["accuracy_top5"] == 0.5


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (1, 1)])
def test_an_interval_stays_within_its_bounds(correct: int, total: int) -> None:
    low, high = wilson_interval(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    assert high - low > 0.2


def test_calibration_error_is_the_one_counted_by_hand() -> None:
    # Confidences 0.6 (right), 0.62 (wrong), 0.9 (right), 0.99 (right): bins 9, 10, 14, 15 of 15
    top = np.array([0.6, 0.62, 0.9, 0.99])
    logs = np.log(np.stack([top, 1 - top], axis=1))
    found = reliability(logs, np.array([0, 1, 0, 0]))
    assert found.ece == pytest.approx((0.4 + 0.62 + 0.1 + 0.01) / 4)
    expected = -(math.log(0.6) + math.log(0.38) + math.log(0.9) + math.log(0.99)) / 4
    assert found.nll == pytest.approx(expected)
    assert [row["images"] for row in found.bins] == [0] * 8 + [1, 1, 0, 0, 0, 1, 1]
    assert found.bins[9]["confidence"] == pytest.approx(0.62)
    assert found.bins[9]["accuracy"] == 0.0
    assert found.bins[0]["accuracy"] is None


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    found = reliability(log_probabilities(np.array([[1000.0, 0.0]])), np.array([0]))
    assert found.bins[-1]["images"] == 1
    assert found.ece == 0.0


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(factor: float) -> None:
    logits, targets = drawn(20_000, 4)
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.03)


def test_no_other_temperature_is_likelier() -> None:
    logits, targets = drawn(500, 3, seed=1)
    logits *= 2.5
    temperature = fit_temperature(logits, targets)

    def loss(t: float) -> float:  # with the prior that weighs as much as one image
        nll = reliability(log_probabilities(logits / t), targets).nll
        return 500 * nll + 1 / t + math.log(t)

    tried = temperature * np.exp(np.linspace(-1, 1, 401))
    assert loss(temperature) <= min(loss(float(t)) for t in tried) + 1e-9
    after = reliability(log_probabilities(logits / temperature), targets)
    before = reliability(log_probabilities(logits), targets)
    assert after.nll < before.nll
    assert after.ece < before.ece / 2


def test_a_few_images_that_are_all_right_do_not_make_a_model_certain() -> None:
    logits, targets = np.array([[2.0, 0.0], [0.0, 2.0]] * 4), np.array([0, 1] * 4)
    assert 0.3 < fit_temperature(logits, targets) < 1
    huge = fit_temperature(np.tile([[1e-9, 0.0]], (10_000, 1)), np.zeros(10_000, dtype=np.int64))
    assert huge >= COOLEST


def test_cross_fitted_figures_are_those_of_the_other_folds() -> None:
    logits, targets = drawn(60, 3, seed=2)
    folds = np.arange(60) % 3
    found = cross_fitted(logits, targets, folds)
    for fold in range(3):
        held_out = folds == fold
        temperature = fit_temperature(logits[~held_out], targets[~held_out])
        expected = log_probabilities(logits[held_out] / temperature)
        np.testing.assert_array_equal(found[held_out], expected)


def test_curves_are_those_counted_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
    positive = np.array([True, True, False, True, False])
    found = two_class_curves(scores, positive)
    assert found is not None
    # 6 pairs: 0.9 above both, 0.8 ties with one and above the other, 0.3 above one
    assert found["roc"]["auc"] == pytest.approx((2 + 1.5 + 1) / 6)
    assert found["roc"]["points"] == pytest.approx(
        np.array([[0, 0], [0, 1 / 3], [0.5, 2 / 3], [0.5, 1], [1, 1]])
    )
    expected = 1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4
    assert found["precision_recall"]["average_precision"] == pytest.approx(expected)


def test_the_area_is_the_chance_of_the_right_order() -> None:
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(0, 20, 80) / 20, rng.random(80) < 0.4
    found = two_class_curves(scores, positive)
    pairs = itertools.product(scores[positive], scores[~positive])
    chances = [(a > b) + (a == b) / 2 for a, b in pairs]
    assert found is not None
    assert found["roc"]["auc"] == pytest.approx(np.mean(chances))


def test_one_class_alone_has_no_curve() -> None:
    assert two_class_curves(np.array([0.1, 0.9]), np.array([True, True])) is None


@pytest.mark.parametrize(("errors", "total"), [(0, 30), (1, 100), (5, 50), (20, 20), (3, 7)])
def test_a_bound_is_where_so_few_errors_become_unlikely(errors: int, total: int) -> None:
    bound = float(upper_bounds(np.array([errors]), np.array([total]), 0.05)[0])
    if errors == total:
        assert bound == 1.0
        return
    p = Fraction(bound)
    chance = sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(errors + 1))
    assert float(chance) == pytest.approx(0.05, rel=1e-6)


def test_thresholds_leave_out_what_they_say() -> None:
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.5, 1, 200)
    right = rng.random(200) < confidence
    found = levels(confidence, right)
    assert [level.coverage for level in found] == pytest.approx(np.arange(1, 21) / 20)
    for level in found:
        answered = confidence > level.threshold
        assert answered.mean() == pytest.approx(level.coverage)
        assert (~right[answered]).mean() == pytest.approx(level.error)
        assert level.error < level.error_bound <= 1
    assert found[-1].threshold == 0.0


def test_equal_confidences_stand_or_fall_together() -> None:
    found = levels(np.array([0.9] * 50 + [0.6] * 50), np.array([True] * 90 + [False] * 10))
    assert [(level.coverage, level.threshold) for level in found] == [(0.5, 0.6), (1.0, 0.0)]
    assert levels(np.array([0.7] * 40), np.array([True] * 40))[0].coverage == 1.0


def test_promised_errors_are_kept_more_often_than_promised() -> None:
    """Draw many sets; a budget may be overrun for at most a twentieth of them."""
    broken = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.5, 1, 300)
        found = levels(confidence, rng.random(300) < confidence)
        # Above threshold t confidences are uniform, and an error has the chance 1 - confidence
        broken += any((1 - level.threshold) / 2 > level.error_bound for level in found[:-1])
    assert broken <= 10


def test_a_budget_gets_the_largest_coverage_that_keeps_it() -> None:
    rows = [Level(0.5, 0.9, 0.0, 0.04), Level(0.8, 0.7, 0.01, 0.03), Level(1, 0, 0.05, 0.1)]
    calibration = Calibration(1.0, "val", 100, 0.95, tuple(rows))
    assert calibration.level_for(0.05) == rows[1]
    assert calibration.level_for(0.2) == rows[2]
    assert calibration.level_for(0.01) is None
    assert Calibration.from_json(calibration.as_json()) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": None},
        {"certainty": 1.5},
        {"levels": [{"coverage": 2.0, "threshold": 0.5, "error": 0.0, "error_bound": 0.1}]},
        {"levels": [{"coverage": 1.0}]},
        {"levels": None},
        {"images": -1},
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    value = Calibration(1.0, "val", 100, 0.95, ()).as_json()
    with pytest.raises((ValueError, TypeError, KeyError)):
        Calibration.from_json({**value, **change})


def test_figures_on_other_images_are_measured_and_on_the_same_ones_cross_fitted() -> None:
    task = Classification(("a", "b", "c"))
    logits, targets = (torch.from_numpy(array) for array in drawn(300, 3, seed=5))
    own = judged(3 * logits.float(), targets, "train-folds")
    basis = Basis.of(own)
    assert basis.calibration.temperature == pytest.approx(3, rel=0.3)
    same = task.evaluation(own, basis)
    assert same["calibration"]["cross_fitted"]
    assert all(row["measured"] is None for row in same["abstention"])
    other_logits, other_targets = (torch.from_numpy(array) for array in drawn(300, 3, seed=6))
    other = task.evaluation(judged(3 * other_logits.float(), other_targets), basis)
    assert not other["calibration"]["cross_fitted"]
    after = other["calibration"]["after"]
    assert after["nll"] < other["calibration"]["before"]["nll"]
    for row in other["abstention"]:
        level = basis.calibration.level_for(row["max_error"])
        assert (level is None) == (row["measured"] is None)
    scores = [row["score"] for row in other["predictions"]]
    served = (3 * other_logits / basis.calibration.temperature).softmax(1).max(1).values
    assert scores == pytest.approx(served.tolist(), abs=1e-6)
    right = sum(other["confusion"][i][i] for i in range(3))
    assert other["accuracy_top1"] == pytest.approx(right / 300)  # no temperature moves it
