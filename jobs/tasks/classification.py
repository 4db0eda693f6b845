"""Single-label classification: the loss, the metrics, and the evaluation that users read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.evaluation.judged import Basis, JudgedImages, honesty
from jobs.evaluation.ranking import two_class_curves

EVALUATION_FORMAT = 2
TASK = "classification"
_MOST_ERRORS = 50  # that are listed, the most confident first
_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Classification:
    """One class per image, C classes.

    Args:
        classes: Class names; target i means `classes[i]`.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    name = TASK

    def loss(
        self, logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Return the cross-entropy of each image in nats, `[B]`.

        Args:
            logits: float `[B, C]`.
            targets: Class indices int64 `[B]`, or probabilities float32 `[B, C]`.
            label_smoothing: Part of each target spread evenly over all classes.
            weights: What each class counts, float32 `[C]`; None for 1.
        """
        return functional.cross_entropy(
            logits, targets, weights, label_smoothing=label_smoothing, reduction="none"
        )

    def probabilities(self, targets: Tensor) -> Tensor:
        """Return class indices int64 `[B]` as probabilities, float32 `[B, C]`."""
        return functional.one_hot(targets, len(self.classes)).float()

    def balanced_weights(self, targets: Tensor) -> Tensor:
        """Return weights, float32 `[C]`, with which all classes count the same in a loss.

        They are 1 on average over the images: learning rates keep their meaning.

        Args:
            targets: Class indices of the training images, int64 `[N]`.
        """
        counts = torch.bincount(targets, minlength=len(self.classes)).clamp(min=1)
        return (len(targets) / (len(self.classes) * counts)).float()

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Return `accuracy_top1` (fraction) and `loss` (nats) of logits `[N, C]`."""
        correct = logits.argmax(dim=1) == targets
        return {
            "accuracy_top1": float(correct.double().mean()),
            "loss": float(functional.cross_entropy(logits.double(), targets)),
        }

    def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Return what the better of two candidates has more of: accuracy, then likelihood.

        A candidate whose loss is not finite ranks last: its accuracy counts arbitrary guesses.
        """
        loss = metrics["loss"]
        if not math.isfinite(loss):
            return -math.inf, -math.inf
        return metrics["accuracy_top1"], -loss

    def evaluation(self, images: JudgedImages, basis: Basis | None) -> dict[str, Any]:
        """Return the evaluation of a model, JSON-ready.

        Args:
            images: What it is judged by.
            basis: What it answers with besides its network: scores are those of serving.
        """
        count = len(self.classes)
        logs = images.log_scores(None if basis is None else basis.calibration)
        targets, predicted = images.targets64, logs.argmax(axis=1)
        confusion = np.bincount(targets * count + predicted, minlength=count * count)
        confusion = confusion.reshape(count, count)  # rows: true class, columns: predicted
        per_class = [_class_figures(name, confusion, i) for i, name in enumerate(self.classes)]
        correct = int(confusion.diagonal().sum())
        seen = [figures["f1"] for figures in per_class if figures["support"]]
        rows = self._predictions(images.ids, targets, logs)
        errors = sorted(
            (row for row in rows if row["label"] != row["predicted"]),
            key=lambda row: -row["score"],
        )
        curves: dict[str, Any] = {"roc": None, "precision_recall": None}
        if count == 2:  # the second class is the positive one
            curves |= two_class_curves(np.exp(logs[:, 1]), targets == 1) or {}
        return {
            "format": EVALUATION_FORMAT,
            "split": images.split,
            "images": len(targets),
            "classes": list(self.classes),
            **self.metrics(images.logits, images.targets),
            "accuracy_interval_95": list(wilson_interval(correct, len(targets))),
            "accuracy_top5": _accuracy_top(5, logs, targets) if count > 5 else None,
            "macro_f1": sum(seen) / len(seen),
            "confusion": confusion.tolist(),
            "per_class": per_class,
            "positive_class": self.classes[1] if count == 2 else None,
            **curves,
            **honesty(images, basis),
            "most_confident_errors": errors[:_MOST_ERRORS],
            "predictions": rows,
        }

    def _predictions(
        self, ids: Sequence[str], targets: NDArray[np.int64], logs: NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        guesses, scores = logs.argmax(axis=1).tolist(), np.exp(logs.max(axis=1)).tolist()
        return [
            {
                "image": image,
                "label": self.classes[label],
                "predicted": self.classes[guess],
                "score": score,
            }
            for image, label, guess, score in zip(
                ids, targets.tolist(), guesses, scores, strict=True
            )
        ]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction that was measured as `correct` of `total`.

    Source: Wilson 1927, JASA 22:209-212 (unlike the normal one it stays within 0..1).
    """
    fraction, z2 = correct / total, _Z_95 * _Z_95
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    spread = _Z_95 * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total * total))
    half = spread / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def _accuracy_top(k: int, logs: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Return the fraction of images whose true class is among the k likeliest.

    Of equally likely classes the true one comes last: a constant model must not look good.
    """
    true = logs[np.arange(len(targets)), targets]
    return float(((logs >= true[:, None]).sum(axis=1) <= k).mean())


def _class_figures(name: str, confusion: NDArray[np.int64], index: int) -> dict[str, Any]:
    hits = int(confusion[index, index])
    support, claimed = int(confusion[index].sum()), int(confusion[:, index].sum())
    return {
        "class": name,
        "precision": hits / claimed if claimed else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (support + claimed) if support + claimed else 0.0,
        "support": support,
    }
