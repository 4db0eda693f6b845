"""Calibration: how far confidence is from accuracy, and the one number that brings it closer.

Everything is float64: a temperature must not depend on how a sum was rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15  # Guo et al. 2017, section 5
COOLEST, WARMEST = 0.05, 20.0  # temperatures beyond would turn scores into 0 and 1, or into 1 / C
_NEWTON_STEPS = 60  # halvings of the bracket alone would need no more for 12 digits


@dataclass(frozen=True)
class Reliability:
    """How confidence and accuracy agree over a set of images.

    Args:
        nll: Mean negative log-likelihood of the true class, in nats.
        ece: Expected calibration error: mean distance of confidence and accuracy over bins of
            equal width, weighted by their images.
        bins: Per bin `from`, `to`, `images`, and mean `confidence` and `accuracy` (None if empty).
    """

    nll: float
    ece: float
    bins: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"nll": self.nll, "ece": self.ece, "bins": list(self.bins)}


def log_probabilities(logits: Floats) -> Floats:
    """Return log softmax of logits `[N, C]`, stable for any finite values."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def reliability(logs: Floats, targets: Ints) -> Reliability:
    """Measure calibration.

    Args:
        logs: Log-probabilities `[N, C]`.
        targets: Class indices `[N]`.

    Source:
        ECE: Naeini et al. 2015, AAAI 29; Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    right = logs.argmax(axis=1) == targets
    nll = float(-logs[np.arange(len(targets)), targets].mean())
    return _binned(np.exp(logs.max(axis=1)), right, nll)


def label_reliability(logs: Floats, truth: Ints) -> Reliability:
    """Measure calibration of labels: how many of those with a score of p are there.

    Not the confidence of the likelier answer: most labels are absent, and absence is easily right.

    Args:
        logs: Log-probabilities of absence and presence, `[M, 2]`.
        truth: 1 where the label is there, `[M]`.

    Returns:
        In each bin `confidence` is the mean score, `accuracy` the fraction that has the label.
    """
    nll = float(-logs[np.arange(len(truth)), truth].mean())
    return _binned(np.exp(logs[:, 1]), truth == 1, nll)


def as_pairs(logits: Floats) -> Floats:
    """Return logits of labels `[N, C]` as choices between absence and presence, `[N * C, 2]`.

    A sigmoid is a softmax whose other logit is 0: what holds for two classes holds for a label.
    """
    flat = logits.reshape(-1)
    return np.stack([np.zeros_like(flat), flat], axis=1)


def _binned(confidence: Floats, right: NDArray[np.bool_], nll: float) -> Reliability:
    # A bin is (from, to]; rounding may put a confidence of 1 just above it
    bin_of = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    confidences = np.bincount(bin_of, weights=confidence, minlength=BINS)
    rights = np.bincount(bin_of, weights=right, minlength=BINS)
    bins = tuple(
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "images": int(count[i]),
            "confidence": float(confidences[i] / count[i]) if count[i] else None,
            "accuracy": float(rights[i] / count[i]) if count[i] else None,
        }
        for i in range(BINS)
    )
    return Reliability(nll, float(np.abs(confidences - rights).sum() / len(confidence)), bins)


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the temperature T for which softmax(logits / T) is most likely; in [0.05, 20].

    The loss is convex in 1 / T: Newton's steps inside a bracket that shrinks, no randomness. Where
    every image is right the likelihood alone has no maximum, and a few images would make scores
    of 1; so T = 1 is expected beforehand, by a Gamma distribution of 1 / T that weighs as much as
    one image.

    Args:
        logits: `[N, C]`, of images that the model did not learn from.
        targets: Class indices `[N]`.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2; the prior is ours.
    """
    logits = logits - logits[np.arange(len(targets)), targets][:, None]  # the true class has 0
    low, high = 1 / WARMEST, 1 / COOLEST
    inverse = 1.0
    for _ in range(_NEWTON_STEPS):
        chances = np.exp(log_probabilities(inverse * logits))
        mean = (chances * logits).sum(axis=1)
        variance = (chances * logits**2).sum(axis=1) - mean**2
        slope = float(mean.sum()) + 1 - 1 / inverse
        curvature = float(variance.sum()) + inverse**-2
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        following = inverse - slope / curvature
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return 1 / inverse


def cross_fitted(logits: Floats, targets: Ints, folds: Ints) -> Floats:
    """Return log-probabilities `[N, C]` with each image's temperature fitted on the other folds.

    For figures on the very images that the temperature is fitted on.

    Args:
        logits: `[N, C]`.
        targets: Class indices `[N]`.
        folds: Fold of each image, `[N]`; with one fold alone the temperature is 1.
    """
    logs = np.empty_like(logits)
    for fold in np.unique(folds):
        held_out = folds == fold
        others = ~held_out
        temperature = fit_temperature(logits[others], targets[others]) if others.any() else 1.0
        logs[held_out] = log_probabilities(logits[held_out] / temperature)
    return logs
