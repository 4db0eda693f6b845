"""What the head's solver minimises: cross-entropy of one label per image, or of any number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_pass(
    logits: Tensor, labels: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, squared probabilities (both summed) and residuals `[B, C]`.

    Args:
        logits: `[B, C]`.
        labels: int64 `[B]`.
        weights: What each image counts, `[B]`.
    """
    logs, labels = logits.log_softmax(dim=1), labels[:, None]
    chosen = logs.gather(1, labels)
    if weights is not None:
        chosen *= weights[:, None]
    loss = -chosen.sum(dtype=torch.float64)
    residuals = logs.exp_()
    squares = residuals.square().sum(dtype=torch.float64)
    residuals.scatter_add_(1, labels, residuals.new_full(labels.shape, -1.0))
    if weights is not None:
        residuals *= weights[:, None]
    return loss, squares, residuals


def sigmoid_pass(
    logits: Tensor, labels: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same for 0 and 1 `[B, C]`; `B - squares` is the variance over all classes.

    Args:
        logits: `[B, C]`.
        labels: float `[B, C]`.
        weights: What each label counts, `[B, C]`.
    """
    labels = labels.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="none")
    probabilities = logits.sigmoid()
    variance = (probabilities * (1 - probabilities)).sum(dtype=torch.float64)
    residuals = probabilities - labels
    if weights is not None:
        residuals *= weights
    return loss.sum(dtype=torch.float64), len(logits) - variance, residuals


def mean_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> float:
    """Return the mean cross-entropy in nats over images, or over all labels of all images.

    Args:
        logits: `[N, C]`.
        labels: int64 `[N]`, or 0 and 1 float `[N, C]`.
        weights: What each label counts, shaped as they are.
    """
    if labels.ndim == 1:
        losses = F.cross_entropy(logits, labels, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses if weights is None else losses * weights).mean().item()


def balanced(labels: Tensor, num_classes: int) -> Tensor:
    """Return weights, 1 on average, with which all classes count the same.

    Args:
        labels: int64 `[N]`: then `[N]` is returned; or 0 and 1 float `[N, C]`: then `[N, C]`, with
            which having a class and lacking it count the same.
        num_classes: C.
    """
    count = len(labels)
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
        return (count / (num_classes * counts))[labels]
    having = labels.sum(dim=0)  # [C]
    weight_of = [count / (2 * number.clamp(min=1)) for number in (count - having, having)]
    return torch.where(labels > 0, weight_of[1], weight_of[0])
