"""What an artifact knows of its own confidence: temperature, and thresholds for error budgets.

Plain numbers in `artifact.json`; fitted in `jobs.evaluation`, applied by the predictor. Where an
image has one label, an answer is right if the label is; where it may have several, if exactly
these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_LEVELS = 1000


@dataclass(frozen=True)
class Level:
    """What a model does if it only answers above a threshold.

    Args:
        coverage: Fraction of the images that it answers.
        threshold: It answers images whose confidence is above this: the highest score, or, with
            several labels, `set_confidence`.
        error: Fraction of the answered images that were wrong.
        error_bound: Upper bound on that fraction for images to come.
    """

    coverage: float
    threshold: float
    error: float
    error_bound: float


@dataclass(frozen=True)
class Calibration:
    """How logits become scores, and what the scores promise.

    Args:
        temperature: T; scores are softmax(logits / T), or sigmoid(logits / T).
        fitted_on: The split that both were fitted on; `train-folds` means training images, each
            judged by a model that did not learn from it.
        images: How many images that were.
        certainty: Chance that all bounds hold.
        levels: By rising coverage; none: nothing can be promised.
    """

    temperature: float
    fitted_on: str
    images: int
    certainty: float
    levels: tuple[Level, ...]

    def level_for(self, max_error: float) -> Level | None:
        """Return the level of largest coverage that keeps an error budget; None if none does."""
        kept = [level for level in self.levels if level.error_bound <= max_error]
        return max(kept, key=lambda level: level.coverage, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        return {**asdict(self), "levels": [asdict(level) for level in self.levels]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Rebuild from `as_json`'s form; `KeyError`, `TypeError` or `ValueError` if it is none."""
        levels = list(value["levels"])
        if len(levels) > _MOST_LEVELS:
            raise ValueError(f"{len(levels)} levels of calibration, the limit is {_MOST_LEVELS}")
        fields = Level.__dataclass_fields__
        calibration = cls(
            temperature=float(value["temperature"]),
            fitted_on=str(value["fitted_on"]),
            images=int(value["images"]),
            certainty=float(value["certainty"]),
            levels=tuple(Level(**{name: float(row[name]) for name in fields}) for row in levels),
        )
        fractions = [calibration.certainty]
        for level in calibration.levels:
            fractions += asdict(level).values()
        if not all(0 <= fraction <= 1 for fraction in fractions):
            raise ValueError("a fraction of the calibration is not within 0 and 1")
        if not (0 < calibration.temperature < math.inf and calibration.images >= 0):
            raise ValueError(f"temperature {calibration.temperature!r} is not positive and finite")
        return calibration


def set_confidence(scores: NDArray[np.float64], claimed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the chance that exactly the claimed labels are there, if labels were independent.

    They seldom are, so it ranks answers and promises nothing by itself: that is for the levels.

    Args:
        scores: Chance of each label, `[..., C]`.
        claimed: Which labels are answered, `[..., C]`.

    Returns:
        `[...]`.
    """
    chances: NDArray[np.float64] = np.where(claimed, scores, 1 - scores)
    product: NDArray[np.float64] = chances.prod(axis=-1)
    return product
