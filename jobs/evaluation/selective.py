"""Selective prediction: from which confidence on a model errs at most as often as it may.

The coverages that are looked at are fixed before any label is seen, and the bound of each holds
together with all others: whichever error budget a user states later, the promise stands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models_cache.calibration import Level

Floats = NDArray[np.float64]

LEVELS = 20  # coverages 5 %, 10 %, ... 100 %; twice as many would cost a tenth of the bound
CERTAINTY = 0.95  # chance that every bound holds


def levels(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Level, ...]:
    """Return what a model answers and how often it errs at each coverage, from most to least sure.

    The threshold of a coverage is the confidence of the first image that is left out. Given that
    image, those above it are as good as drawn from all images above the threshold: the errors
    among them are binomial, and an exact bound on one proportion applies.

    Args:
        confidence: Highest score of each image, `[N]`; images the model did not learn from.
        right: Whether its label was right, `[N]`.

    Source:
        Geifman and El-Yaniv 2017, arXiv:1705.08500, algorithm 1, with a fixed grid of coverages in
        place of its binary search, so that one table serves every budget.
    """
    count = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], np.cumsum((~right[order]).astype(np.int64))
    wanted = np.unique(np.ceil(np.arange(1, LEVELS + 1) * count / LEVELS).astype(np.int64))
    thresholds = np.append(ranked, 0.0)[wanted]
    accepted = np.searchsorted(-ranked, -thresholds, side="left")  # those strictly above
    kept = np.flatnonzero((accepted > 0) & (np.diff(accepted, prepend=0) > 0))
    thresholds, accepted = thresholds[kept], accepted[kept]
    errors = wrong[accepted - 1]
    bounds = upper_bounds(errors, accepted, (1 - CERTAINTY) / LEVELS)
    return tuple(
        Level(int(n) / count, float(threshold), int(e) / int(n), float(bound))
        for n, threshold, e, bound in zip(accepted, thresholds, errors, bounds, strict=True)
    )


def upper_bounds(
    errors: NDArray[np.int64], totals: NDArray[np.int64], miss_chance: float
) -> Floats:
    """Return upper confidence bounds `[L]` of proportions measured as `errors` of `totals`.

    Each is the proportion at which so few errors would have the chance `miss_chance`.

    Source:
        Clopper and Pearson 1934, Biometrika 26:404-413; by bisection, all at once.
    """
    most = int(errors.max(initial=0))
    log_factorial = np.concatenate(
        [[0.0], np.cumsum(np.log(np.arange(1, int(totals.max(initial=0)) + 1)))]
    )
    k = np.arange(most + 1)[None, :]  # [1, K]
    n = totals[:, None]  # [L, 1]
    counted = k <= errors[:, None]
    ways = np.where(
        counted, log_factorial[n] - log_factorial[k] - log_factorial[np.maximum(n - k, 0)], -np.inf
    )
    low, high = errors / totals, np.ones(len(totals))
    for _ in range(50):
        middle = (low + high) / 2
        p = np.clip(middle, 1e-300, 1 - 1e-16)[:, None]
        chance = np.exp(ways + k * np.log(p) + np.maximum(n - k, 0) * np.log1p(-p)).sum(axis=1)
        low, high = (
            np.where(chance > miss_chance, middle, low),
            np.where(chance > miss_chance, high, middle),
        )
    return np.where(errors == totals, 1.0, high)
