"""Images into answers: the one forward pass of a batch, and what each head says of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models_cache.artifacts import MULTILABEL
from models_cache.calibration import set_confidence
from models_cache.contrast import BLANK_CONTRAST, contrast
from models_cache.errors import GraftError, ModelUnhealthy
from models_cache.served_models import LoadedHead, Model, Pixels


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
        logits: What scores are the softmax or sigmoid of, float32 `[C]` on the CPU.
        scores: Calibrated, float32 `[C]` on the CPU; with sum 1 unless there may be several labels.
        ood_score: Fraction of the known images that are less unusual, 1 for a picture of one
            colour; None if the model cannot tell.
        out_of_distribution: Whether that is too many for an image like the known ones.
        features: What the backbone makes of it, float32 `[D]` on the CPU.
    """

    logits: Tensor
    scores: Tensor
    ood_score: float | None
    out_of_distribution: bool
    features: Tensor


def answers_of(images: Sequence[QueuedImage]) -> list[ImageOutput | GraftError]:
    """Run images of models that share a backbone: one pass, then each head on its own rows.

    Returns:
        Per image what its model says, or why it says nothing.
    """
    model = images[0].model
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))  # [B, H, W, 3]
    features = model.backbone.features(pixels, model.preprocessing)  # [B, D]
    outcomes: list[ImageOutput | GraftError | None] = [None] * len(images)
    for head, rows in _rows_by_head(images):
        blank = [contrast(images[row].pixels) < BLANK_CONTRAST for row in rows]
        for row, outcome in zip(rows, _outputs_of_head(head, features[rows], blank), strict=True):
            outcomes[row] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _outputs_of_head(
    head: LoadedHead, features: Tensor, blank: Sequence[bool]
) -> Iterator[ImageOutput | GraftError]:
    """Yield what a head says of its images by their features `[B, D]`.

    A picture of one colour is unlike every known one, whatever its features resemble: networks
    see little in it, and little is what lies near the centre of all that is known.
    """
    logits = head.linear(features)  # [B, C]
    logits_of_scores = logits / head.temperature
    independent = head.artifact.facts.task == MULTILABEL
    scores = logits_of_scores.sigmoid() if independent else logits_of_scores.softmax(dim=1)
    finite = logits.isfinite().all(dim=1).tolist()
    ood_scores: list[float | None] = [None] * len(features)
    strange = [False] * len(features)
    if head.familiarity is not None:
        ood_scores, strange = (found.tolist() for found in head.familiarity.judge(features))
    for row, is_finite in enumerate(finite):
        if is_finite:
            judged = (ood_scores[row], strange[row])
            if blank[row] and head.familiarity is not None:
                judged = (1.0, True)
            yield ImageOutput(logits_of_scores[row], scores[row], *judged, features[row])
        else:
            yield ModelUnhealthy(head.artifact.digest)


def decided(scores: Tensor, model: Model) -> tuple[dict[str, Any], float]:
    """Return what an answer says besides scores, and the confidence that error budgets ask for.

    With one label nothing and the highest score; with several `labels`, the classes whose score
    reaches theirs, and `score`, the confidence in exactly these.

    Args:
        scores: float32 `[C]`.
        model: What they are of.
    """
    if model.thresholds is None:
        return {}, float(scores.max())
    values = scores.double().numpy()
    claimed = values >= np.array(model.thresholds)
    confidence = float(set_confidence(values, claimed))
    labels = [name for name, flag in zip(model.classes, claimed, strict=True) if flag]
    return {"labels": labels, "score": confidence}, confidence


def ranked(scores: Tensor, classes: Sequence[str], top_k: int | None) -> list[dict[str, Any]]:
    """Return `[{"label", "score"}]`, highest first; equal scores in the order of the classes.

    Args:
        scores: float32 `[C]`.
        classes: C names.
        top_k: How many to return; None for all.
    """
    count = min(top_k or len(classes), len(classes))
    values, indices = torch.sort(scores, descending=True, stable=True)
    return [
        {"label": classes[index], "score": value}
        for value, index in zip(values[:count].tolist(), indices[:count].tolist(), strict=True)
    ]


def _rows_by_head(images: Sequence[QueuedImage]) -> list[tuple[LoadedHead, list[int]]]:
    groups: dict[str, tuple[LoadedHead, list[int]]] = {}
    for row, image in enumerate(images):
        head = image.model.head
        groups.setdefault(head.artifact.digest, (head, []))[1].append(row)
    return list(groups.values())
