"""How sure a mean average precision is: it is no mean over images, so each draw is ranked anew.

A draw of images with replacement is a count for each image. Scores are sorted once; a draw's
precision and recall are sums of counts in that order, so no draw is sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobs.tasks.multilabel import mean_average_precision
from jobs.training.bootstrap import LEVEL, Comparison

MOST_DRAWS, FEWEST_DRAWS = 1000, 100
_MOST_NUMBERS = 1e9  # counts that are summed in all draws; a few seconds
_NUMBERS_AT_ONCE = 1 << 22
_SEED = 153  # any number: the same images and scores must always give the same answer

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


def compare_precisions(reference: Scores, candidate: Scores, truth: Truth) -> Comparison:
    """Compare two classifiers on the same draws of the same images; see `bootstrap.compare`.

    Args:
        reference: Scores or logits, `[N, C]`.
        candidate: The same images and classes in the same order.
        truth: Which labels the images have, `[N, C]`.
    """
    gains = resampled_mean_precisions(candidate, truth) - resampled_mean_precisions(
        reference, truth
    )
    gain = mean_average_precision(candidate, truth) - mean_average_precision(reference, truth)
    return Comparison(len(truth), gain, float(np.quantile(gains, 1 - LEVEL)), len(gains))


def resampled_mean_precisions(scores: Scores, truth: Truth) -> Scores:
    """Return the mean average precision of draws of N images with replacement, `[draws]`.

    Classes that a draw has no image of are left out of its mean. The same draws for all scores of
    as many images; fewer where there are many images and classes.

    Args:
        scores: Or logits, `[N, C]`.
        truth: Which labels the images have, `[N, C]`.
    """
    count, classes = truth.shape
    draws = int(np.clip(_MOST_NUMBERS / (count * classes), FEWEST_DRAWS, MOST_DRAWS))
    random = np.random.default_rng(_SEED)
    at_once = max(1, _NUMBERS_AT_ONCE // count)
    found = []
    for done in range(0, draws, at_once):
        drawn = random.integers(0, count, (min(at_once, draws - done), count))
        times = np.stack([np.bincount(draw, minlength=count) for draw in drawn])  # [B, N]
        found.append(_mean_precisions(times, scores, truth))
    return np.concatenate(found)


def _mean_precisions(times: NDArray[np.int64], scores: Scores, truth: Truth) -> Scores:
    """Return the mean average precision of draws that have each image so many times, `[B]`."""
    total, seen = np.zeros(len(times)), np.zeros(len(times))
    for column, has_class in zip(scores.T, truth.T, strict=True):
        order = np.argsort(-column, kind="stable")
        ends = np.flatnonzero(np.diff(column[order], append=-np.inf))  # of runs of equal scores
        claims = times[:, order].cumsum(axis=1)[:, ends]
        hits = (times * has_class)[:, order].cumsum(axis=1)[:, ends]
        gained = np.diff(hits, prepend=0, axis=1)
        support = hits[:, -1]
        area = (gained * hits / np.maximum(claims, 1)).sum(axis=1)
        total += area / np.maximum(support, 1)
        seen += support > 0
    means: Scores = total / np.maximum(seen, 1)
    return means
