"""Images into answers: the one forward pass of a batch, and what each head says of its rows.

Heads are applied one product each, since stacking their weights costs more than it saves; all
else (temperatures, scores, what is finite) is done once for the batch. In NumPy: such products
are a few microseconds long, and torch's threads would wait for each other, and for the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models_cache.artifacts import MULTILABEL
from models_cache.calibration import set_confidence
from models_cache.contrast import BLANK_CONTRAST, contrast
from models_cache.errors import GraftError, ModelUnhealthy
from models_cache.novelty import judge, runs
from models_cache.served_models import LoadedHead, Model, Pixels

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QueuedImage:
    """One image on its way to a forward pass: pixels `[crop, crop, 3]`.

    It holds its model itself, so that no eviction takes it away.
    """

    model: Model
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class ImageOutput:
    """What a model says of one image.

    Args:
        logits: What scores are the softmax or sigmoid of, float32 `[C]`.
        scores: Calibrated, float32 `[C]`; with sum 1 unless there may be several labels.
        ood_score: Fraction of the known images that are less unusual, 1 for a picture of one
            colour; None if the model cannot tell.
        out_of_distribution: Whether that is too many for an image like the known ones.
        features: What the backbone makes of it, float32 `[D]`.
    """

    logits: Array
    scores: Array
    ood_score: float | None
    out_of_distribution: bool
    features: Array


def answers_of(images: Sequence[QueuedImage]) -> list[ImageOutput | GraftError]:
    """Run images of models that share a backbone: one pass, then each head on its own rows.

    Where they share its trunk alone, each passes on through stages of its own.

    Returns:
        Per image what its model says, or why it says nothing.
    """
    # Rows of one head become neighbours: its product then needs no copy
    order = sorted(range(len(images)), key=lambda row: images[row].model.head.artifact.digest)
    queued = [images[row] for row in order]
    heads = [image.model.head for image in queued]
    outcomes: list[ImageOutput | GraftError | None] = [None] * len(images)
    for row, outcome in zip(order, outputs_of(heads, _features(queued)), strict=True):
        outcomes[row] = _unlike_all_if_blank(outcome, images[row].pixels)
    return [outcome for outcome in outcomes if outcome is not None]


def _features(images: Sequence[QueuedImage]) -> Array:
    """Return features `[B, D]`; those of one model are neighbours where models have a trunk."""
    model = images[0].model
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))  # [B, H, W, 3]
    trunk = model.backbone.trunk
    if trunk is None:
        return model.backbone.engine.features(pixels, model.preprocessing).numpy()
    activations = trunk.engine.outputs(trunk.engine.input_of(pixels, model.preprocessing))
    backbones = [image.model.backbone for image in images]
    found = [own.engine.outputs(activations[rows]) for own, rows in runs(backbones)]
    return torch.cat(found).float().cpu().numpy()


def _unlike_all_if_blank(
    outcome: ImageOutput | GraftError, pixels: Pixels
) -> ImageOutput | GraftError:
    """Call a picture of one colour out of distribution, where a model can tell at all.

    Its features do not: networks see little in it, and little is what lies near the centre of all
    that is known.
    """
    if isinstance(outcome, GraftError) or outcome.ood_score is None:
        return outcome
    if contrast(pixels) >= BLANK_CONTRAST:
        return outcome
    return replace(outcome, ood_score=1.0, out_of_distribution=True)


def outputs_of(heads: Sequence[LoadedHead], features: Array) -> list[ImageOutput | GraftError]:
    """Return what heads say of images by their features.

    Args:
        heads: Of each image, B of them; equal ones are neighbours.
        features: `[B, D]`.
    """
    logits = _logits(heads, features)
    classes = np.array([len(head.bias) for head in heads])
    finite = np.isfinite(logits).sum(axis=1) == classes  # what is behind a head's classes is not
    logits[~finite] = 0
    logits /= np.array([head.temperature for head in heads], np.float32)[:, None]
    scores = _scores(heads, logits)
    judged = zip(*_strangeness(heads, features), strict=True)
    outcomes: list[ImageOutput | GraftError] = []
    for row, (head, strangeness) in enumerate(zip(heads, judged, strict=True)):
        if finite[row]:
            own = slice(classes[row])
            rows = logits[row, own], scores[row, own]
            outcomes.append(ImageOutput(*rows, *strangeness, features[row]))
        else:
            outcomes.append(ModelUnhealthy(head.artifact.digest))
    return outcomes


def _logits(heads: Sequence[LoadedHead], features: Array) -> Array:
    """Return logits `[B, C]` of the widest head's C; behind a narrower head's, minus infinity."""
    widest = max(len(head.bias) for head in heads)
    logits = np.full((len(heads), widest), -np.inf, np.float32)
    with np.errstate(all="ignore"):  # what is not finite is told of by its model's name
        for head, rows in runs(heads):
            own = logits[rows, : len(head.bias)]
            np.matmul(features[rows], head.weight.T, out=own)
            own += head.bias
    return logits


def _scores(heads: Sequence[LoadedHead], logits: Array) -> Array:
    """Return scores `[B, C]` of calibrated logits."""
    scores: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    several = [head.artifact.facts.task == MULTILABEL for head in heads]
    if any(several):
        with np.errstate(over="ignore"):  # a score of 0
            scores[several] = 1 / (1 + np.exp(-logits[several]))
    return scores


def _strangeness(
    heads: Sequence[LoadedHead], features: Array
) -> tuple[list[float | None], list[bool]]:
    """Return how unlike each model's known images its image is, and whether too much."""
    scores: list[float | None] = [None] * len(heads)
    strange = [False] * len(heads)
    known = [(row, head.familiarity) for row, head in enumerate(heads)]
    told = [(row, familiarity) for row, familiarity in known if familiarity is not None]
    if not told:
        return scores, strange
    rows = [row for row, _ in told]
    found, flags = judge([familiarity for _, familiarity in told], features[rows])
    for row, score, flag in zip(rows, found.tolist(), flags.tolist(), strict=True):
        scores[row], strange[row] = score, flag
    return scores, strange


def decided(scores: Array, model: Model) -> tuple[dict[str, Any], float]:
    """Return what an answer says besides scores, and the confidence that error budgets ask for.

    With one label nothing and the highest score; with several `labels`, the classes whose score
    reaches theirs, and `score`, the confidence in exactly these.

    Args:
        scores: float32 `[C]`.
        model: What they are of.
    """
    if model.thresholds is None:
        return {}, float(scores.max())
    values = scores.astype(np.float64)
    claimed = values >= np.array(model.thresholds)
    confidence = float(set_confidence(values, claimed))
    labels = [name for name, flag in zip(model.classes, claimed, strict=True) if flag]
    return {"labels": labels, "score": confidence}, confidence


def ranked(scores: Array, classes: Sequence[str], top_k: int | None) -> list[dict[str, Any]]:
    """Return `[{"label", "score"}]`, highest first; equal scores in the order of the classes.

    Args:
        scores: float32 `[C]`.
        classes: C names.
        top_k: How many to return; None for all.
    """
    count = min(top_k or len(classes), len(classes))
    indices = np.argsort(-scores, kind="stable")[:count]
    return [
        {"label": classes[index], "score": value}
        for index, value in zip(indices.tolist(), scores[indices].tolist(), strict=True)
    ]
