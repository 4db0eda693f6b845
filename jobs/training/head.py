"""The head: a softmax classifier on frozen features, its penalty chosen by cross-validation.

The objective is convex and every choice follows from the content of the images: the result has
no seed. Features are centred and divided by one common scale, so that a penalty means the same
for every backbone and the solver is well conditioned; both are folded into the returned layer,
which takes raw features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.errors import FeaturesNotFinite
from jobs.recipes import HeadRecipe
from models_cache.durable import sha256_of_bytes

_HISTORY = 20  # pairs of vectors that L-BFGS keeps
_GRADIENT_TOLERANCE = 1e-7
_WORSE_IN_A_ROW = 2  # the out-of-fold loss has one valley in log(l2): then the search ends


@dataclass(frozen=True)
class HeadFit:
    """A fitted head and what cross-validation said about it.

    Args:
        head: Linear layer `[C, D]` on raw features, on the CPU.
        l2: The penalty that was chosen.
        out_of_fold_logits: float32 `[N, C]`: for each training image the logits of a head that
            saw neither it nor an exact copy of it.
        out_of_fold_loss: Mean cross-entropy of these, in nats.
    """

    head: nn.Linear
    l2: float
    out_of_fold_logits: Tensor
    out_of_fold_loss: float


def fit_head(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    num_classes: int,
    recipe: HeadRecipe,
) -> HeadFit:
    """Choose the penalty by cross-validation, then fit on all images.

    The search walks from the strongest penalty to the weakest, each fit starting from the one
    before, and ends when the out-of-fold loss has risen twice in a row. All folds are fitted at
    once, as one problem that falls apart into them.

    Args:
        features: Backbone outputs, float32 `[N, D]`, one row per training image.
        labels: Class indices, int64 `[N]`, each in `range(num_classes)`.
        groups: Content hash of each image; equal ones never lie in different folds.
        num_classes: Number of outputs, C.
        recipe: Folds, penalties and bound on iterations.

    Raises:
        FeaturesNotFinite: A feature is NaN or infinite.
    """
    space = _Space.of(features)
    labels = labels.to(features.device)
    folds = assign_folds(labels.tolist(), groups, recipe.folds).to(features.device)
    fold_numbers = torch.arange(int(folds.max()) + 1, device=folds.device)
    masks = (folds[:, None] != fold_numbers).to(space.rows.dtype)  # [N, K]
    if len(fold_numbers) == 1:  # one distinct image cannot be split
        masks = torch.ones_like(masks)
    problem = _Problem(space.rows, labels, masks, num_classes, recipe.max_iterations)
    best: tuple[float, float, Tensor] | None = None  # loss, l2, logits
    parameters = problem.start()
    worse = 0
    for l2 in l2_path(recipe):
        parameters = problem.solve(l2, parameters)
        logits = problem.logits(parameters)[torch.arange(len(folds)), folds]  # [N, C]
        loss = F.cross_entropy(logits, labels).item()
        worse = 0 if best is None or loss < best[0] else worse + 1
        if not worse:
            best = (loss, l2, logits)
        if worse == _WORSE_IN_A_ROW:
            break
    assert best is not None, "every path has a first penalty"
    loss, l2, logits = best
    head = fit_linear_head(
        features, labels, num_classes, l2=l2, max_iterations=recipe.max_iterations
    )
    return HeadFit(head.cpu(), l2, logits.float().cpu(), loss)


def fit_linear_head(
    features: Tensor, labels: Tensor, num_classes: int, *, l2: float, max_iterations: int = 200
) -> nn.Linear:
    """Fit a softmax classifier on frozen backbone features with a given penalty.

    Takes seconds for a few thousand images and is the baseline that every longer recipe has to
    beat. The objective is convex: the result does not depend on a seed.

    Args:
        features: Backbone outputs, float32 `[N, D]`, one row per training image.
        labels: Class indices, int64 `[N]`, each in `range(num_classes)`.
        num_classes: Number of outputs, C.
        l2: Penalty on the squared weights of centred and scaled features, in nats (the loss is a
            mean over images).
        max_iterations: Bound on L-BFGS iterations; each reads all N rows at least once.

    Returns:
        Linear layer with weight `[C, D]` and bias `[C]`, on the device of `features`.

    Raises:
        FeaturesNotFinite: A feature is NaN or infinite, as after a float16 overflow.

    Source:
        Linear probe as in Radford et al. 2021, arXiv:2103.00020 (L-BFGS, frozen features).
    """
    space = _Space.of(features)
    ones = torch.ones(len(features), 1, dtype=space.rows.dtype, device=features.device)
    problem = _Problem(space.rows, labels.to(features.device), ones, num_classes, max_iterations)
    parameters = problem.solve(l2, problem.start())  # [R + 1, C]
    return space.layer(parameters)


def l2_path(recipe: HeadRecipe) -> list[float]:
    """Return the penalties that are tried, from the strongest to the weakest."""
    decades = math.log10(recipe.l2_strongest / recipe.l2_weakest)
    count = 1 + max(0, round(decades * recipe.l2_per_decade))
    return [recipe.l2_strongest * 10 ** (-i / recipe.l2_per_decade) for i in range(count)]


def assign_folds(labels: Sequence[int], groups: Sequence[str], folds: int) -> Tensor:
    """Return the fold of each image, int64 `[N]`: stratified, and a function of content alone.

    Groups of equal images are dealt out class by class in the order of their hash, so that
    neither the order of upload nor a seed changes who is held out with whom.

    Args:
        labels: Class index of each image.
        groups: Content hash of each image.
        folds: Number of folds; fewer where there are fewer distinct images.
    """
    label_of: dict[str, int] = {}
    for label, group in zip(labels, groups, strict=True):
        label_of.setdefault(group, label)
    # Hashed again: image hashes may have been sorted on purpose by whoever drew the val split.
    order = sorted(label_of, key=lambda g: (label_of[g], sha256_of_bytes(f"fold:{g}".encode())))
    count = min(folds, len(order))
    fold_of = {group: position % count for position, group in enumerate(order)}
    return torch.tensor([fold_of[group] for group in groups])


@dataclass(frozen=True)
class _Space:
    """Features as the solver sees them: centred, scaled, rotated where that shortens rows.

    With fewer images N than features D the solution lies in the span of the images (the penalty
    does not see a rotation), so N numbers per image carry the whole problem.
    """

    rows: Tensor  # float64 [N, R]
    centre: Tensor  # float64 [D]
    scale: Tensor  # float64 scalar
    rotation: Tensor | None  # float64 [R, D], orthonormal rows

    @classmethod
    def of(cls, features: Tensor) -> _Space:
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        if bad:
            raise FeaturesNotFinite(bad, len(features))
        rows = features.double()  # float32 rounding would end L-BFGS before the optimum
        centre = rows.mean(dim=0)
        rows = rows - centre
        scale = rows.square().mean(dim=0).sqrt().mean()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        rows = rows / scale
        if rows.shape[0] * 2 > rows.shape[1]:
            return cls(rows, centre, scale, None)
        _, _, rotation = torch.linalg.svd(rows, full_matrices=False)  # [N, D]
        return cls(rows @ rotation.T, centre, scale, rotation)

    def layer(self, parameters: Tensor) -> nn.Linear:
        """Return the layer on raw features for solver parameters `[R + 1, C]`."""
        weight = parameters[:-1].T  # [C, R]
        if self.rotation is not None:
            weight = weight @ self.rotation
        weight = weight / self.scale  # [C, D]
        bias = parameters[-1] - weight @ self.centre
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer


@dataclass(frozen=True)
class _Problem:
    """K softmax regressions on the same rows, each on the rows its mask selects."""

    rows: Tensor  # float64 [N, R]
    labels: Tensor  # int64 [N]
    masks: Tensor  # float64 [N, K], 1 where the row is learned from
    num_classes: int
    max_iterations: int

    def start(self) -> Tensor:
        """Return zero parameters `[R + 1, K * C]`."""
        columns = self.masks.shape[1] * self.num_classes
        return self.rows.new_zeros(self.rows.shape[1] + 1, columns)

    def logits(self, parameters: Tensor) -> Tensor:
        """Return the logits of all rows under all K regressions, `[N, K, C]`."""
        flat = torch.addmm(parameters[-1], self.rows, parameters[:-1])
        return flat.view(len(self.rows), -1, self.num_classes)

    def solve(self, l2: float, start: Tensor) -> Tensor:
        """Return the parameters that minimise the sum of the K penalised losses."""
        parameters = start.clone().requires_grad_(True)
        weights = self.masks / self.masks.sum(dim=0)  # [N, K]
        targets = self.labels[:, None].expand(-1, self.masks.shape[1])  # [N, K]
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=self.max_iterations,
            history_size=_HISTORY,
            tolerance_grad=_GRADIENT_TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = self.logits(parameters).flatten(0, 1)  # [N * K, C]
            losses = F.cross_entropy(logits, targets.reshape(-1), reduction="none")
            total = (losses * weights.reshape(-1)).sum() + l2 * parameters[:-1].square().sum()
            total.backward()
            return total

        optimizer.step(loss)
        return parameters.detach()
