"""What a head would have learned from fewer images, and whether more of them would help.

Every point is measured on all training images: a fold is judged by heads that saw a part of the
other folds. Parts are nested, stratified and a function of content alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jobs.training.head import fit_linear_head
from jobs.training.head_loss import mean_loss
from models_cache.durable import sha256_of_bytes

Poll = Callable[[int, int], None]

FRACTIONS = (0.1, 0.25, 0.5)  # the point of all images is the cross-validation itself


@dataclass(frozen=True)
class Point:
    """Heads that learned from a part of the images.

    Args:
        fraction: Of the images of the other folds.
        images: That one head learned from, on average over the folds.
        logits: float32 `[N, C]`, out of fold.
    """

    fraction: float
    images: float
    logits: Tensor


def learning_curve(
    features: Tensor,
    labels: Tensor,
    contents: Sequence[str],
    folds: Tensor,
    l2: float,
    poll: Poll,
) -> list[Point]:
    """Return the points of `FRACTIONS`.

    Args:
        features: float32 `[N, D]`.
        labels: Class indices, int64 `[N]`, every class with an image; with several labels float32
            `[N, C]`, 0 or 1.
        contents: Content hash of each image; copies are in a part together.
        folds: Fold of each image, int64 `[N]`.
        l2: The penalty that suits all images.
        poll: Called before each head with heads done and all there are; may raise.
    """
    data = _Data(features, labels, contents, folds)
    total = 2 * data.fold_count * len(FRACTIONS)
    points: list[Point] = []
    for fraction in FRACTIONS:
        # A fixed prior on the weights means a penalty of the mean loss that falls as 1 / images
        tried: list[Point] = []
        for penalty in (l2, l2 / fraction):
            before = data.fold_count * (2 * len(points) + len(tried))
            tried.append(data.heads_of(fraction, penalty, partial(_report, poll, before, total)))
        points.append(min(tried, key=lambda point: mean_loss(point.logits, labels, None)))
    poll(total, total)
    return points


def _report(poll: Poll, before: int, total: int, fold: int) -> None:
    poll(before + fold, total)


@dataclass(frozen=True)
class _Data:
    """What every point is made of; see `learning_curve`."""

    features: Tensor
    labels: Tensor
    contents: Sequence[str]
    folds: Tensor

    @property
    def fold_count(self) -> int:
        return int(self.folds.max()) + 1

    def heads_of(self, fraction: float, l2: float, poll: Callable[[int], None]) -> Point:
        """Return what heads of all folds, each from a part of the others, say of theirs."""
        several = self.labels.ndim == 2
        classes = self.labels.shape[1] if several else int(self.labels.max()) + 1
        logits = self.features.new_zeros(len(self.features), classes)
        images = 0
        for fold in range(self.fold_count):
            poll(fold)
            judged = self.folds == fold
            # One distinct image cannot be split: it is judged by a head that saw it
            others = ~judged if self.fold_count > 1 else judged
            part = part_of(self.labels, self.contents, others, fraction)
            head = fit_linear_head(self.features[part], self.labels[part], classes, l2=l2)
            with torch.inference_mode():
                logits[judged] = head(self.features[judged])
            images += len(part)
        return Point(fraction, images / self.fold_count, logits)


def part_of(labels: Tensor, contents: Sequence[str], among: Tensor, fraction: float) -> Tensor:
    """Return positions of a part of some images, int64 ascending: at least one of each class.

    Args:
        labels: Class index of each image, int64 `[N]`; with several labels float32 `[N, C]`.
        contents: Content hash of each image.
        among: Which images it is a part of, bool `[N]`.
        fraction: How large a part of each class; with several labels, of all images.
    """
    positions = torch.nonzero(among).flatten().tolist()
    if labels.ndim == 2:
        return _part_of_sets(labels, contents, positions, fraction)
    by_class: dict[int, dict[str, list[int]]] = {}
    for position in positions:
        copies = by_class.setdefault(int(labels[position]), {})
        copies.setdefault(contents[position], []).append(position)
    chosen: list[int] = []
    for copies in by_class.values():
        order = _in_order(copies)
        for content in order[: math.ceil(fraction * len(order))]:
            chosen += copies[content]
    return torch.tensor(sorted(chosen))


def _part_of_sets(
    labels: Tensor, contents: Sequence[str], positions: Sequence[int], fraction: float
) -> Tensor:
    """Return a part of all images, and of each class that it lacks the next image in the order.

    Sets of labels may occur once each, so there are no shares of sets to keep; parts stay nested.
    """
    copies: dict[str, list[int]] = {}
    for position in positions:
        copies.setdefault(contents[position], []).append(position)
    order = _in_order(copies)
    chosen = set(order[: math.ceil(fraction * len(order))])
    for column in labels.T.bool().tolist():
        having = [content for content in order if any(column[i] for i in copies[content])]
        chosen.update(having[:1])
    return torch.tensor(sorted(i for content in chosen for i in copies[content]))


def _in_order(contents: Iterable[str]) -> list[str]:
    # Hashed again: folds were dealt out in the order of another hash
    return sorted(contents, key=lambda content: sha256_of_bytes(f"curve:{content}".encode()))
