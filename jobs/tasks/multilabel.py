"""Several labels per image: the loss, the metrics, and the evaluation that users read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.judged_labels import (
    Thresholds,
    class_calibrations,
    label_honesty,
    label_scores,
    truth_of,
)
from jobs.evaluation.ranking import Scores, Truth, average_precision, two_class_curves
from models_cache.artifacts import MULTILABEL
from models_cache.calibration import set_confidence

EVALUATION_FORMAT = 2


class Multilabel:
    """Any number of C classes per image, each judged by itself.

    Args:
        classes: Class names; column i of targets means `classes[i]`.
    """

    name = MULTILABEL

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def loss(
        self, logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Return the binary cross-entropy of each image in nats, the mean over classes, `[B]`.

        Args:
            logits: float `[B, C]`.
            targets: Probabilities of the labels, float32 `[B, C]`.
            label_smoothing: Part of each target that is moved to one half.
            weights: What an image of each class counts, float32 `[C]`; None for 1.
        """
        smoothed = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits, smoothed, pos_weight=weights, reduction="none"
        ).mean(dim=1)

    def probabilities(self, targets: Tensor) -> Tensor:
        """Return labels float32 `[B, C]`: they are probabilities already."""
        return targets

    def balanced_weights(self, targets: Tensor) -> Tensor:
        """Return weights, float32 `[C]`, with which images of a class count as much as others.

        Args:
            targets: Labels of the training images, float32 `[N, C]`.
        """
        positives = targets.sum(dim=0).clamp(min=1)
        return ((len(targets) - positives).clamp(min=1) / positives).float()

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Return `mean_average_precision` (fraction) and `loss` (nats) of logits `[N, C]`.

        The mean is over the classes that occur among the images; 0 if none does.
        """
        return {
            "mean_average_precision": mean_average_precision(
                logits.double().numpy(), targets.numpy() > 0
            ),
            "loss": float(self.loss(logits.double(), targets, 0.0, None).mean()),
        }

    def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Return what the better of two candidates has more of: precision, then likelihood."""
        loss = metrics["loss"]
        if not math.isfinite(loss):
            return -math.inf, -math.inf
        return metrics["mean_average_precision"], -loss

    def evaluation(
        self, images: JudgedImages, basis: Basis | None, thresholds: Thresholds
    ) -> dict[str, Any]:
        """Return the evaluation of a model, JSON-ready.

        Args:
            images: What it is judged by, labels float32 `[N, C]`.
            basis: What it answers with besides its network: scores are those of serving.
            thresholds: From which score on it claims a label.
        """
        scores = label_scores(images, None if basis is None else basis.calibration)
        truth, claimed = truth_of(images), thresholds.claimed(scores)
        per_class = [
            {
                "class": name,
                "threshold": thresholds.values[i],
                **_ranked(scores[:, i], truth[:, i]),
                **_counted(truth[:, i], claimed[:, i]),
                "calibration": {"before": before.as_json(), "after": after.as_json()},
            }
            for i, (name, (before, after)) in enumerate(
                zip(self.classes, class_calibrations(images, basis), strict=True)
            )
        ]
        seen = [figures["f1"] for figures in per_class if figures["support"]]
        curves: dict[str, Any] = {"roc": None, "precision_recall": None}
        curves |= two_class_curves(scores.reshape(-1), truth.reshape(-1)) or {}
        confidences = set_confidence(scores, claimed).tolist()
        return {
            "format": EVALUATION_FORMAT,
            "task": self.name,
            "split": images.split,
            "thresholds_from": thresholds.chosen_on,
            "images": len(images.ids),
            "classes": list(self.classes),
            **self.metrics(images.logits, images.targets),
            "exact_match": float((claimed == truth).all(axis=1).mean()),
            "micro_f1": _counted(truth, claimed)["f1"],
            "macro_f1": sum(seen) / max(1, len(seen)),
            "per_class": per_class,
            **curves,
            **label_honesty(images, basis, thresholds),
            "predictions": [
                {
                    "image": image,
                    "labels": self._named(truth[row]),
                    "predicted": self._named(claimed[row]),
                    "score": confidences[row],
                    "scores": [round(score, 6) for score in scores[row].tolist()],
                }
                for row, image in enumerate(images.ids)
            ],
        }

    def _named(self, flags: Truth) -> list[str]:
        return [name for name, flag in zip(self.classes, flags, strict=True) if flag]


def mean_average_precision(scores: Scores, truth: Truth) -> float:
    """Return the mean over the classes that occur among the images; 0 if none does.

    Args:
        scores: Or logits, `[N, C]`: their order is what counts.
        truth: Which labels the images have, `[N, C]`.
    """
    found = [average_precision(scores[:, i], truth[:, i]) for i in range(truth.shape[1])]
    occurring = [precision for precision in found if precision is not None]
    return sum(occurring) / max(1, len(occurring))


def _ranked(scores: Scores, truth: Truth) -> dict[str, float | None]:
    curves = two_class_curves(scores, truth)
    return {
        "average_precision": average_precision(scores, truth),
        "roc_auc": None if curves is None else curves["roc"]["auc"],
    }


def _counted(truth: Truth, claimed: Truth) -> dict[str, Any]:
    hits, support, claims = (int(x.sum()) for x in (truth & claimed, truth, claimed))
    return {
        "precision": hits / claims if claims else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (support + claims) if support + claims else 0.0,
        "support": support,
    }
