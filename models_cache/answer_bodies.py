"""What is said of one image, JSON-ready: the same for a call and for a file of answers."""

from __future__ import annotations

import math
from typing import Any

from models_cache.answers import ImageOutput, decided, ranked
from models_cache.served_models import Model


def abstention_of(model: Model, max_error: float | None) -> dict[str, float | None] | None:
    """Return above which confidence a model keeps an error budget, and what that costs it.

    Without a budget None. A `threshold` of None: no threshold keeps it, as far as the held-out
    images can tell, and the model answers nothing.
    """
    if max_error is None:
        return None
    calibration = model.head.artifact.facts.calibration
    level = None if calibration is None else calibration.level_for(max_error)
    return {
        "max_error": max_error,
        "threshold": None if level is None else level.threshold,
        "coverage": 0.0 if level is None else level.coverage,
        "error_bound": None if level is None else level.error_bound,
    }


def answer_body(
    output: ImageOutput,
    model: Model,
    top_k: int | None,
    abstention: dict[str, float | None] | None,
) -> dict[str, Any]:
    """Return the labels of an image with their scores, and whether they should be believed.

    Args:
        output: What the model says of it.
        model: Whose classes and thresholds.
        top_k: How many scores; None for all.
        abstention: See `abstention_of`.
    """
    threshold = -math.inf
    if abstention is not None:
        threshold = math.inf if abstention["threshold"] is None else abstention["threshold"]
    decision, confidence = decided(output.scores, model)
    return {
        "scores": ranked(output.scores, model.classes, top_k),
        **decision,
        "abstained": output.out_of_distribution or not confidence > threshold,
        "ood_score": output.ood_score,
        "out_of_distribution": output.out_of_distribution,
    }
