"""Several labels per image: the loss, the metrics, the thresholds, and the evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.evaluation.judged import JudgedImages
from models_cache.artifacts import MULTILABEL

EVALUATION_FORMAT = 1
_UNSURE = 0.5  # the threshold of a class of which no image is known

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Multilabel:
    """Any number of C classes per image, each judged by itself.

    Args:
        classes: Class names; column i of targets means `classes[i]`.
        thresholds: Score from which on each class is a label, C of them; None: not chosen yet.
        thresholds_from: The split that they were chosen on.
    """

    name = MULTILABEL

    def __init__(
        self,
        classes: Sequence[str],
        thresholds: Sequence[float] | None = None,
        thresholds_from: str = "",
    ) -> None:
        self.classes = tuple(classes)
        self.thresholds = None if thresholds is None else tuple(thresholds)
        self._thresholds_from = thresholds_from

    def with_thresholds(self, known: JudgedImages) -> Multilabel:
        """Return the task with the thresholds that give each class its best F1.

        Args:
            known: Images that the model did not learn from, labels float32 `[N, C]`.
        """
        scores, truth = _scores(known.logits), known.targets.numpy() > 0
        found = [best_threshold(scores[:, i], truth[:, i]) for i in range(len(self.classes))]
        return Multilabel(self.classes, found, known.split)

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
        scores, truth = _scores(logits), targets.numpy() > 0
        found = [average_precision(scores[:, i], truth[:, i]) for i in range(len(self.classes))]
        occurring = [precision for precision in found if precision is not None]
        return {
            "mean_average_precision": sum(occurring) / max(1, len(occurring)),
            "loss": float(self.loss(logits.double(), targets, 0.0, None).mean()),
        }

    def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Return what the better of two candidates has more of: precision, then likelihood."""
        loss = metrics["loss"]
        if not math.isfinite(loss):
            return -math.inf, -math.inf
        return metrics["mean_average_precision"], -loss

    def evaluation(self, images: JudgedImages) -> dict[str, Any]:
        """Return the evaluation of a model whose thresholds are chosen, JSON-ready.

        Args:
            images: What it is judged by, labels float32 `[N, C]`.
        """
        assert self.thresholds is not None, "thresholds are chosen before anything is judged"
        scores, truth = _scores(images.logits), images.targets.numpy() > 0
        claimed = scores >= np.array(self.thresholds)
        per_class = [
            {
                "class": name,
                "threshold": self.thresholds[i],
                "average_precision": average_precision(scores[:, i], truth[:, i]),
                **_counted(truth[:, i], claimed[:, i]),
            }
            for i, name in enumerate(self.classes)
        ]
        seen = [figures["f1"] for figures in per_class if figures["support"]]
        return {
            "format": EVALUATION_FORMAT,
            "task": self.name,
            "split": images.split,
            "thresholds_from": self._thresholds_from,
            "images": len(images.ids),
            "classes": list(self.classes),
            **self.metrics(images.logits, images.targets),
            "exact_match": float((claimed == truth).all(axis=1).mean()),
            "micro_f1": _counted(truth, claimed)["f1"],
            "macro_f1": sum(seen) / max(1, len(seen)),
            "per_class": per_class,
            "predictions": [
                {
                    "image": image,
                    "labels": self._named(truth[row]),
                    "predicted": self._named(claimed[row]),
                    "scores": [round(score, 6) for score in scores[row].tolist()],
                }
                for row, image in enumerate(images.ids)
            ],
        }

    def _named(self, flags: Truth) -> list[str]:
        return [name for name, flag in zip(self.classes, flags, strict=True) if flag]


def average_precision(scores: Scores, truth: Truth) -> float | None:
    """Return the area under a class's precision-recall curve; None if no image has it.

    The sum over thresholds of precision times the recall gained there. Equal scores are one
    threshold: a model that says the same of all images gets the share of the class, not luck.
    Source: Zhu 2004, Recall, precision and average precision (as in scikit-learn).

    Args:
        scores: `[N]`.
        truth: Which images have the class, `[N]`.
    """
    hits, claims = _curve(scores, truth)
    if not len(hits) or not hits[-1]:
        return None
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / claims).sum())


def best_threshold(scores: Scores, truth: Truth) -> float:
    """Return the score from which on a class is claimed so that F1 is best.

    In the middle between the last score that is claimed and the next one, since other images
    will lie between them; of equally good ones the highest.

    Args:
        scores: Of images that were not learned from, `[N]`, 0 to 1.
        truth: Which of them have the class, `[N]`.
    """
    hits, claims = _curve(scores, truth)
    if not len(hits) or not hits[-1]:
        return _UNSURE
    best = int((2 * hits / (claims + hits[-1])).argmax())
    levels = np.unique(scores)[::-1]
    below = levels[best + 1] if best + 1 < len(levels) else 0.0
    return float((levels[best] + below) / 2)


def _curve(scores: Scores, truth: Truth) -> tuple[Scores, Scores]:
    """Return how many images are hit, and claimed, from each different score on, descending."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each run of equal scores
    hits = truth[order].cumsum()[last].astype(np.float64)
    return hits, (last + 1).astype(np.float64)


def _scores(logits: Tensor) -> Scores:
    scores: Scores = logits.double().sigmoid().numpy()
    return scores


def _counted(truth: Truth, claimed: Truth) -> dict[str, Any]:
    hits, support, claims = (int(x.sum()) for x in (truth & claimed, truth, claimed))
    return {
        "precision": hits / claims if claims else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (support + claims) if support + claims else 0.0,
        "support": support,
    }
