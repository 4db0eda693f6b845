"""What the inference process answers to a prediction, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models_cache.answer_bodies import abstention_of, answer_body
from models_cache.answers import ImageOutput
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
    abstention = abstention_of(model, wanted.max_error)
    bodies = []
    for prediction in predictions:
        output = prediction.output
        if isinstance(output, ImageError):
            bodies.append(as_json({"error": to_wire(output)}))
            continue
        body = answer_body(output, model, wanted.top_k, abstention)
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


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
