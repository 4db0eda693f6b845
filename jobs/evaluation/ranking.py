"""Two classes: how well scores rank the images (ROC, precision and recall)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_POINTS = 200  # of a stored curve; areas are computed over all of them


def two_class_curves(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> dict[str, dict[str, Any]] | None:
    """Return `roc` and `precision_recall` as JSON; None if one of the classes has no image.

    Args:
        scores: Of the positive class, `[N]`; higher means more likely.
        positive: Whether an image is of that class, `[N]`.

    Returns:
        `roc`: `auc` (an image of one class and one of the other: the chance that their scores
        are in the right order, ties count half) and `points` `[false positive rate, true positive
        rate]`. `precision_recall`: `average_precision` (precision at each rise of recall, weighted
        by the rise; not interpolated) and `points` `[recall, precision]`.

    Source:
        Fawcett 2006, Pattern Recognition Letters 27:861-874, algorithms 1 and 3.
    """
    hits, total = int(positive.sum()), len(positive)
    if hits in (0, total):
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), total - 1)  # equal scores: one point
    true = np.cumsum(positive[order])[ends]
    claimed = ends + 1
    rate_true = np.concatenate([[0.0], true / hits])
    rate_false = np.concatenate([[0.0], (claimed - true) / (total - hits)])
    precision = true / claimed
    return {
        "roc": {
            "auc": float(np.trapezoid(rate_true, rate_false)),
            "points": _thinned(rate_false, rate_true),
        },
        "precision_recall": {
            "average_precision": float((np.diff(rate_true) * precision).sum()),
            "points": _thinned(rate_true[1:], precision),
        },
    }


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(np.int64))
    return [[float(x[i]), float(y[i])] for i in chosen]
