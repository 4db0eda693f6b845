"""The task of several labels: figures by hand, thresholds, and the head that learns them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jobs.datasets.manifest import build_manifest
from jobs.evaluation.calibrating import label_reliability
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.judged_labels import Thresholds, best_threshold, label_basis, label_scores
from jobs.evaluation.ranking import average_precision
from jobs.recipes import HeadRecipe
from jobs.tasks.kinds import task_of
from jobs.tasks.multilabel import Multilabel
from jobs.training.head import assign_folds, fit_head, strata
from jobs.training.head_loss import balanced
from tests.unit.test_multilabel_data import image

CLASSES = ("ant", "bee", "person")


def arrays(scores: list[float], truth: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores), np.array(truth, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.9, 0.8, 0.3], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.3], [0, 1, 0], 0.5),
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.25),  # says the same of all: the class's share
        ([0.5, 0.5], [0, 0], None),
        ([], [], None),
    ],
)
def test_average_precision(scores: list[float], truth: list[int], expected: float | None) -> None:
    found = average_precision(*arrays(scores, truth))
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.9, 0.8, 0.3], [1, 1, 0], 0.55),
        ([0.2, 0.1, 0.04], [1, 1, 0], 0.07),  # a rare class is claimed long before one half
        ([0.9, 0.8], [1, 1], 0.4),
        ([0.9, 0.8], [0, 0], 0.5),
    ],
)
def test_a_threshold_lies_between_what_is_claimed_and_what_is_not(
    scores: list[float], truth: list[int], expected: float
) -> None:
    assert best_threshold(*arrays(scores, truth)) == pytest.approx(expected)


def test_the_loss_is_that_of_independent_classes() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    task = Multilabel(CLASSES)
    found = task.loss(logits, targets, 0.0, None)
    by_hand = [
        sum(functional.softplus(x if t == 0 else -x).item() for x, t in zip(*row, strict=True)) / 3
        for row in zip(logits, targets, strict=True)
    ]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-6)
    flat = task.loss(torch.zeros(1, 3), torch.ones(1, 3), 1.0, None)
    assert flat.item() == pytest.approx(math.log(2))


def test_evaluation_counts_by_class_and_over_all() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.6], [0.8, 0.7, 0.1], [0.1, 0.6, 0.2]])
    targets = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    known, judged = (
        JudgedImages(split, ["a", "b", "c"], targets, scores.logit(), scores, torch.arange(3))
        for split in ("train-folds", "val")
    )
    thresholds = Thresholds.chosen(known, None)
    assert thresholds.values == pytest.approx((0.45, 0.4, 0.4))
    found = Multilabel(CLASSES).evaluation(judged, None, thresholds)
    assert [row["f1"] for row in found["per_class"]] == pytest.approx([1, 2 / 3, 1])
    assert found["micro_f1"] == pytest.approx(8 / 9)
    assert found["macro_f1"] == pytest.approx(8 / 9)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["mean_average_precision"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["predictions"][1]["predicted"] == ["ant", "bee"]
    assert found["thresholds_from"] == "train-folds"
    assert found["predictions"][0]["score"] == pytest.approx(0.9 * 0.8 * 0.6)
    assert [row["roc_auc"] for row in found["per_class"]] == pytest.approx([1, 0.5, 1])
    assert found["roc"]["auc"] == pytest.approx(18 / 20)
    assert found["abstention"] is None


def drawn(
    split: str, seed: int, images: int = 400, sharpness: float = 1.0, spread: float = 2.0
) -> JudgedImages:
    """Return images whose labels are drawn from the scores that logits / sharpness give."""
    rng = np.random.default_rng(seed)
    logits = rng.normal([0, -1.5, -2.5], spread, (images, 3))
    targets = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return JudgedImages(
        split,
        [f"{split}-{row}" for row in range(images)],
        torch.from_numpy(targets).float(),
        torch.from_numpy(sharpness * logits).float(),
        torch.from_numpy(rng.normal(size=(images, 4))).float(),
        torch.arange(images) % 5,
    )


def evaluated(reported: JudgedImages, known: JudgedImages) -> tuple[dict[str, Any], Basis]:
    basis = label_basis(known)
    thresholds = Thresholds.chosen(known, basis.calibration)
    return Multilabel(CLASSES).evaluation(reported, basis, thresholds), basis


def test_one_temperature_calibrates_all_labels() -> None:
    known, other = drawn("train-folds", 1, sharpness=3), drawn("val", 2, sharpness=3)
    found, basis = evaluated(other, known)
    assert basis.calibration.temperature == pytest.approx(3, rel=0.15)
    calibration = found["calibration"]
    assert calibration["fitted_on"] == "train-folds"
    assert not calibration["cross_fitted"]
    assert calibration["after"]["nll"] < calibration["before"]["nll"]
    assert calibration["after"]["ece"] < calibration["before"]["ece"] / 2
    for row in found["per_class"]:
        assert row["calibration"]["after"]["ece"] < row["calibration"]["before"]["ece"]
        assert sum(b["images"] for b in row["calibration"]["after"]["bins"]) == 400
    served = (other.logits.double() / basis.calibration.temperature).sigmoid().numpy()
    np.testing.assert_allclose(label_scores(other, basis.calibration), served, atol=1e-12)
    assert evaluated(known, known)[0]["calibration"]["cross_fitted"]


def test_reliability_of_labels_compares_scores_with_how_many_are_there() -> None:
    scores = np.array([0.1, 0.1, 0.1, 0.1, 0.9])
    found = label_reliability(
        np.log(np.stack([1 - scores, scores], axis=1)), np.array([1, 0, 0, 0, 1])
    )
    rows = {row["accuracy"]: row["confidence"] for row in found.bins if row["images"]}
    assert rows == pytest.approx({0.25: 0.1, 1.0: 0.9})
    assert found.ece == pytest.approx((4 * 0.15 + 0.1) / 5)


def test_error_budgets_are_of_whole_sets_and_are_kept() -> None:
    """Each promise holds with 95 %; on ten sets of new images hardly one may be broken."""
    broken = 0
    for seed in range(10):
        known, other = (
            drawn("train-folds", seed, spread=12),
            drawn("val", 50 + seed, 2000, spread=12),
        )
        found, basis = evaluated(other, known)
        rows = [row for row in found["abstention"] if row["threshold"] is not None]
        assert rows, "nothing could be promised"
        for row in rows:
            level = basis.calibration.level_for(row["max_error"])
            assert level is not None
            broken += row["measured"]["error"] > level.error_bound
    assert broken <= 1
    wrong = [row for row in found["predictions"] if row["labels"] != row["predicted"]]
    assert found["exact_match"] == pytest.approx(1 - len(wrong) / 2000)


def test_bounds_come_from_thresholds_that_have_not_seen_the_image() -> None:
    """Labels drawn by a coin: thresholds that saw them would claim to know some."""
    known = drawn("train-folds", 3, 60)
    coins = np.random.default_rng(4).random((60, 3)) < 0.5
    blind = replace(known, targets=torch.from_numpy(coins).float())
    levels = label_basis(blind).calibration.levels
    assert levels[-1].error > 0.75
    chosen = Thresholds.chosen(blind, None)
    assert (chosen.claimed(label_scores(blind, None)) != coins).any(axis=1).mean() < levels[
        -1
    ].error


def test_one_image_alone_is_calibrated_as_it_is() -> None:
    one = drawn("val", 5, 1)
    found, basis = evaluated(one, replace(one, folds=torch.zeros(1, dtype=torch.int64)))
    assert math.isfinite(basis.calibration.temperature)
    assert found["images"] == 1


def test_a_loss_that_is_not_finite_ranks_last() -> None:
    assert Multilabel(CLASSES).rank({"mean_average_precision": 1.0, "loss": math.nan}) < (0.0, -9.0)


def test_manifests_say_which_task() -> None:
    manifest = build_manifest([image(1, "ant|bee", "train")], {"ant", "bee"})
    assert isinstance(task_of(manifest), Multilabel)


def separable(count: int = 120) -> tuple[Tensor, Tensor]:
    """Return features `[N, 16]` and labels `[N, 3]`; each class is a direction, with noise."""
    torch.manual_seed(0)
    labels = (torch.rand(count, 3) < torch.tensor([0.5, 0.2, 0.1])).float()
    return labels @ torch.randn(3, 16) * 2 + torch.randn(count, 16), labels


def test_the_head_is_that_of_each_class_by_itself() -> None:
    """One batched solve gives what C solves of two-class problems give."""
    features, labels = separable()
    groups = [str(i) for i in range(len(labels))]
    recipe = HeadRecipe(folds=2, l2_strongest=1e-2, l2_weakest=1e-2)
    together = fit_head(features, labels, groups, 3, recipe)
    for column in range(3):
        one = fit_head(features, labels[:, column : column + 1], groups, 1, recipe)
        found = together.head.weight[column : column + 1]
        torch.testing.assert_close(found, one.head.weight, rtol=1e-3, atol=1e-4)


def test_the_head_is_at_the_optimum() -> None:
    features, labels = separable()
    groups = [str(i) for i in range(len(labels))]
    fit = fit_head(features, labels, groups, 3, HeadRecipe())
    head = fit.head.double()
    loss = functional.binary_cross_entropy_with_logits(
        head(features.double()), labels.double(), reduction="sum"
    )
    gradient = torch.autograd.grad(loss / len(labels), [head.bias])[0]  # is not penalised
    assert gradient.abs().max() < 1e-6
    found = Multilabel(CLASSES).metrics(fit.out_of_fold_logits, labels)
    assert found["mean_average_precision"] > 0.9
    assert fit.out_of_fold_loss == pytest.approx(found["loss"], abs=1e-6)


def test_folds_are_dealt_by_sets_of_labels() -> None:
    labels = torch.tensor([[1.0, 1], [1, 0], [0, 0]]).repeat(10, 1)
    folds = assign_folds(strata(labels), [str(i) for i in range(30)], 5)
    for kind in range(3):
        assert torch.bincount(folds[kind::3]).tolist() == [2] * 5


def test_balanced_weights_let_having_and_lacking_a_class_count_the_same() -> None:
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1]])
    weights = balanced(labels, 2)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights * labels).sum(dim=0).tolist() == pytest.approx([2, 2])
