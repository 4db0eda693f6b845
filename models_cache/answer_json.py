"""What the inference process answers to a prediction, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models_cache.answers import ImageOutput, decided, ranked
from models_cache.asgi import as_json
from models_cache.errors import ImageError, to_wire
from models_cache.served_models import Model
from models_cache.wanted import Wanted


@dataclass(frozen=True)
class Prediction:
    """What was said of one image or why nothing was, and its times in seconds."""

    output: ImageOutput | ImageError
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    forward_seconds: float = 0.0
    batch_images: int = 0


def answer_of(model: Model, predictions: Sequence[Prediction], wanted: Wanted) -> bytes:
    """Return the answer to a prediction as JSON; each image by itself, see `as_json`."""
    abstention = _abstention(model, wanted.max_error)
    threshold = -math.inf
    if abstention is not None:
        threshold = math.inf if abstention["threshold"] is None else abstention["threshold"]
    bodies = []
    for prediction in predictions:
        output = prediction.output
        if isinstance(output, ImageError):
            bodies.append(as_json({"error": to_wire(output)}))
            continue
        decision, confidence = decided(output.scores, model)
        body = {
            "scores": ranked(output.scores, model.classes, wanted.top_k),
            **decision,
            "abstained": output.out_of_distribution or not confidence > threshold,
            "ood_score": output.ood_score,
            "out_of_distribution": output.out_of_distribution,
        }
        if wanted.features:
            body["features"] = output.features.tolist()
        if wanted.logits:
            body["logits"] = output.logits.tolist()
        bodies.append(as_json(body))
    timing = {
        "decode_ms": milliseconds(max((p.decode_seconds for p in predictions), default=0)),
        "queue_ms": milliseconds(max((p.queue_seconds for p in predictions), default=0)),
        "forward_ms": milliseconds(max((p.forward_seconds for p in predictions), default=0)),
        "batch_size": max((p.batch_images for p in predictions), default=0),
    }
    rest = {
        "artifact": model.head.artifact.digest,
        "abstention": abstention,
        "timing": timing,
        "wanted_engine": model.backbone.wanted_engine,
    }
    return b'{"predictions": [%s], %s' % (b", ".join(bodies), as_json(rest)[1:])


def _abstention(model: Model, max_error: float | None) -> dict[str, float | None] | None:
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


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
