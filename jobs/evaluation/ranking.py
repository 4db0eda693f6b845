"""How well scores rank images: ROC, precision and recall of one class against the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_POINTS = 200  # of a stored curve; areas are computed over all of them

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


def average_precision(scores: Scores, positive: Truth) -> float | None:
    """Return the area under a class's precision-recall curve; None if no image is of it.

    The sum over thresholds of precision times the recall gained there. Equal scores are one
    threshold: a model that says the same of all images gets the share of the class, not luck.

    Args:
        scores: `[N]`.
        positive: Which images are of the class, `[N]`.

    Source:
        Zhu 2004, Recall, precision and average precision (as in scikit-learn).
    """
    hits, claims = counted(scores, positive)
    if not len(hits) or not hits[-1]:
        return None
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / claims).sum())


def two_class_curves(scores: Scores, positive: Truth) -> dict[str, dict[str, Any]] | None:
    """Return `roc` and `precision_recall` as JSON; None if one of the classes has no image.

    Args:
        scores: Of the positive class, `[N]`; higher means more likely.
        positive: Whether an image is of that class, `[N]`.

    Returns:
        `roc`: `auc` (an image of one class and one of the other: the chance that their scores
        are in the right order, ties count half) and `points` `[false positive rate, true positive
        rate]`. `precision_recall`: `average_precision` and `points` `[recall, precision]`.

    Source:
        Fawcett 2006, Pattern Recognition Letters 27:861-874, algorithms 1 and 3.
    """
    found, total = int(positive.sum()), len(positive)
    if found in (0, total):
        return None
    hits, claims = counted(scores, positive)
    rate_true = np.concatenate([[0.0], hits / found])
    rate_false = np.concatenate([[0.0], (claims - hits) / (total - found)])
    return {
        "roc": {
            "auc": float(np.trapezoid(rate_true, rate_false)),
            "points": _thinned(rate_false, rate_true),
        },
        "precision_recall": {
            "average_precision": average_precision(scores, positive),
            "points": _thinned(rate_true[1:], hits / claims),
        },
    }


def counted(scores: Scores, positive: Truth) -> tuple[Scores, Scores]:
    """Return how many images are hit, and claimed, from each different score on, descending."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each run of equal scores
    hits = positive[order].cumsum()[ends].astype(np.float64)
    return hits, (ends + 1).astype(np.float64)


def _thinned(x: Scores, y: Scores) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(np.int64))
    return [[float(x[i]), float(y[i])] for i in chosen]
