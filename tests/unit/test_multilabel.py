"""The task of several labels: figures by hand, thresholds, and the head that learns them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jobs.datasets.manifest import build_manifest
from jobs.evaluation.judged import JudgedImages
from jobs.recipes import HeadRecipe
from jobs.tasks.kinds import task_of
from jobs.tasks.multilabel import Multilabel, average_precision, best_threshold
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
    task = Multilabel(CLASSES).with_thresholds(known)
    assert task.thresholds == pytest.approx((0.45, 0.4, 0.4))
    found = task.evaluation(judged)
    assert [row["f1"] for row in found["per_class"]] == pytest.approx([1, 2 / 3, 1])
    assert found["micro_f1"] == pytest.approx(8 / 9)
    assert found["macro_f1"] == pytest.approx(8 / 9)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["mean_average_precision"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["predictions"][1]["predicted"] == ["ant", "bee"]
    assert found["thresholds_from"] == "train-folds"


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
