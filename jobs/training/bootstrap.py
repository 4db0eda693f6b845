"""Whether one classifier is better than another on the same images, beyond noise.

The one rule by which a race calls backbones indistinguishable and recipe `auto` promotes.

A few images carry most of a loss, and a bootstrap knows of none that it has not seen: by itself it
is too sure of few images. So one more image is imagined, on which the candidate loses as much as
the two ever differed. What that buys and costs was measured: docs/experiments.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = 0.95  # one-sided
_SEED = 153  # any number: the same images and losses must always give the same answer
_NUMBERS_AT_ONCE = 1 << 22  # 32 MiB of indices

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A candidate against a reference, image by image.

    Args:
        images: How many, N.
        gain: By how much the candidate is better: the mean of reference loss - candidate loss, or
            the difference of what there is more of the better.
        gain_at_least: Lower end of the one-sided 95 % interval of the gain; of losses as if one
            more image had been seen on which the candidate is worse by the largest difference
            there is.
        draws: How many that interval comes from.
    """

    images: int
    gain: float
    gain_at_least: float
    draws: int = DRAWS

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better beyond noise."""
        return self.gain_at_least > 0

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form, with the numbers that the rule has."""
        return {**asdict(self), "level": LEVEL}


def compare(reference: Losses, candidate: Losses) -> Comparison:
    """Compare two classifiers on the same images by a paired bootstrap with one unseen image.

    Args:
        reference: Loss of each image, float64 `[N]`, N at least 1.
        candidate: The same images in the same order.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles).
    """
    gains = reference - candidate
    with_unseen = np.append(gains, -np.abs(gains).max())
    lowest = float(np.quantile(resampled_means(with_unseen), 1 - LEVEL))
    return Comparison(len(gains), float(gains.mean()), lowest)


def mean_interval_95(values: Losses) -> tuple[float, float]:
    """Return the two-sided 95 % interval of a mean by the bootstrap."""
    return interval_95(resampled_means(values))


def interval_95(draws: Losses) -> tuple[float, float]:
    """Return the two-sided 95 % interval of a figure from its draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def resampled_means(values: Losses) -> Losses:
    """Return the means of `DRAWS` draws of N values with replacement, float64 `[DRAWS]`.

    Seeded: the same values always give the same means. Takes `DRAWS` x N memory accesses.
    """
    random = np.random.default_rng(_SEED)
    count = len(values)
    at_once = max(1, _NUMBERS_AT_ONCE // count)
    means = [
        values[random.integers(0, count, (min(at_once, DRAWS - done), count))].mean(axis=1)
        for done in range(0, DRAWS, at_once)
    ]
    return np.concatenate(means)
