"""The training images that backbones are compared on, and by what: with one label, or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.manifest import TRAIN, Manifest
from jobs.errors import RecipeInvalid
from jobs.tasks.classification import wilson_interval
from jobs.tasks.multilabel import mean_average_precision
from jobs.training.bootstrap import Comparison, compare, interval_95, mean_interval_95
from jobs.training.bootstrap_precision import compare_precisions, resampled_mean_precisions
from jobs.training.head import assign_folds, strata
from jobs.training.race_spec import Measure, RankBy
from models_cache.artifacts import MULTILABEL


@dataclass(frozen=True)
class Judged:
    """The images that backbones are compared on.

    Args:
        classes: Class names.
        labels: Class indices, int64 `[N]`; with several labels float32 `[N, C]`, 0 or 1.
        contents: Content hash of each image.
        folds: Fold of each image, int64 `[N]`.
    """

    classes: tuple[str, ...]
    labels: Tensor
    contents: list[str]
    folds: Tensor

    @classmethod
    def of(cls, manifest: Manifest, folds: int) -> Judged:
        """Take the training images of a dataset, in folds that follow from their content."""
        images = manifest.of_split(TRAIN)
        if manifest.task == MULTILABEL:
            labels = torch.zeros(len(images), len(manifest.classes))
            for row, image in enumerate(images):
                labels[row, list(image.labels)] = 1
        else:
            labels = torch.tensor([image.label for image in images])
        contents = [image.sha256 for image in images]
        assigned = assign_folds(strata(labels), contents, folds)
        return cls(manifest.classes, labels, contents, assigned)

    @property
    def fold_count(self) -> int:
        """How many folds there are: fewer than asked for where images are few."""
        return int(self.folds.max()) + 1

    @property
    def several(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    def measure(self, asked: RankBy) -> Measure:
        """Return what decides a race of these images.

        Raises:
            RecipeInvalid: What is asked for is not measured of such images.
        """
        if asked == "auto":
            return "mean_average_precision" if self.several else "loss"
        if asked != "loss" and self.several != (asked == "mean_average_precision"):
            kind = "any number of labels" if self.several else "one label each"
            raise RecipeInvalid("race", "rank_by", f"images with {kind} have no {asked}")
        return asked

    def cost(self, logits: Tensor, measure: Measure) -> float:
        """Return what the better of two backbones has less of."""
        if measure == "mean_average_precision":
            return -self._mean_average_precision(logits)
        return float(self._costs(logits, measure).mean())

    def compare(self, reference: Tensor, candidate: Tensor, measure: Measure) -> Comparison:
        """Compare two backbones by what heads on them say of these images, logits `[N, C]`."""
        if measure == "mean_average_precision":
            truth = self.labels.numpy() > 0
            return compare_precisions(_array(reference), _array(candidate), truth)
        return compare(self._costs(reference, measure), self._costs(candidate, measure))

    def figures(self, logits: Tensor) -> dict[str, Any]:
        """Return the figures of logits `[N, C]`, with 95 % intervals.

        Loss in nats, and accuracy and macro-F1; with several labels mean average precision.
        """
        losses = self._costs(logits, "loss")
        loss = {"loss": float(losses.mean()), "loss_interval_95": list(mean_interval_95(losses))}
        if self.several:
            draws = resampled_mean_precisions(_array(logits), self.labels.numpy() > 0)
            return {
                **loss,
                "mean_average_precision": self._mean_average_precision(logits),
                "mean_average_precision_interval_95": list(interval_95(draws)),
            }
        guesses = logits.argmax(dim=1)
        correct = int((guesses == self.labels).sum())
        return {
            **loss,
            "accuracy_top1": correct / len(losses),
            "accuracy_interval_95": list(wilson_interval(correct, len(losses))),
            "macro_f1": macro_f1(guesses, self.labels, len(self.classes)),
        }

    def _costs(self, logits: Tensor, measure: Measure) -> NDArray[np.float64]:
        """Return nats, or wrong guesses, by image, `[N]`."""
        if measure == "accuracy_top1":
            found = (logits.argmax(dim=1) != self.labels).double()
        elif self.several:
            labels = self.labels.double()
            found = F.binary_cross_entropy_with_logits(logits.double(), labels, reduction="none")
            found = found.mean(dim=1)
        else:
            found = F.cross_entropy(logits.double(), self.labels, reduction="none")
        costs: NDArray[np.float64] = found.numpy()
        return costs

    def _mean_average_precision(self, logits: Tensor) -> float:
        return mean_average_precision(_array(logits), self.labels.numpy() > 0)


def macro_f1(guesses: Tensor, labels: Tensor, classes: int) -> float:
    """Return the mean F1 of the classes that have an image; guesses and labels int64 `[N]`."""
    hits = torch.bincount(labels[guesses == labels], minlength=classes).double()
    support = torch.bincount(labels, minlength=classes).double()
    claimed = torch.bincount(guesses, minlength=classes).double()
    seen = support > 0
    return float((2 * hits / (support + claimed))[seen].mean())


def _array(logits: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = logits.double().numpy()
    return found
