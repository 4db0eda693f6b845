"""The head: a linear classifier on frozen features, its penalty chosen by cross-validation.

Softmax for labels int64 `[N]`; for several labels, float32 `[N, C]`, a sigmoid for each class:
C independent problems with one penalty, solved as one.

The objective is convex and every choice follows from the content of the images: the result has
no seed. Features are seen as `principal_space` turns them, and solved for by `softmax_solver`; the
returned layer takes raw features.

Folds are solved one after another and images in chunks: memory is bounded by features, out-of-fold
logits and a few copies of the parameters. Large problems are searched more coarsely; see `_Effort`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from jobs.recipes import HeadRecipe
from jobs.training.head_loss import balanced, mean_loss
from jobs.training.principal_space import PrincipalSpace
from jobs.training.softmax_solver import SoftmaxProblem
from models_cache.durable import sha256_of_bytes

Poll = Callable[[int, int], bool]  # penalties done, of how many -> whether the time is over

_WORSE_IN_A_ROW = 2  # the out-of-fold loss has one valley in log(l2): then the search ends
# Multiplications of one pass over all folds. Above the first bound: float32, coarse solutions
# during the search and one penalty per decade; above the second the search looks at one fold.
_LARGE = 3e8
_HUGE = 1e10


@dataclass(frozen=True)
class HeadFit:
    """A fitted head and what cross-validation said about it.

    Args:
        head: Linear layer `[C, D]` on raw features, on the CPU.
        l2: The penalty that was chosen.
        out_of_fold_logits: float32 `[N, C]`: for each training image the logits of a head that
            saw neither it nor an exact copy of it.
        out_of_fold_loss: Mean cross-entropy of these, in nats; with several labels also over
            classes.
    """

    head: nn.Linear
    l2: float
    out_of_fold_logits: Tensor
    out_of_fold_loss: float


@dataclass(frozen=True)
class _Effort:
    """How exactly a problem of some size is solved.

    Args:
        dtype: float64 where it is cheap: float32 rounding ends descent before the optimum.
        search_tolerance: Distance to the optimum in nats at which a fit of the search ends.
        tolerance: The same for the head that is returned.
        penalties_per_decade: Upper bound on the recipe's.
        search_folds: Upper bound on the folds by which the penalty is chosen.
    """

    dtype: torch.dtype = torch.float64
    search_tolerance: float = 1e-7
    tolerance: float = 1e-14
    penalties_per_decade: int = 10
    search_folds: int = 20

    @classmethod
    def of(cls, multiplications: float) -> _Effort:
        """Return what is spent on a problem whose one pass over all folds takes that many."""
        if multiplications <= _LARGE:
            return cls()
        search_folds = 1 if multiplications > _HUGE else 20
        return cls(torch.float32, 1e-3, 1e-5, 1, search_folds)


def fit_head(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    num_classes: int,
    recipe: HeadRecipe,
    poll: Poll = lambda _done, _total: False,
) -> HeadFit:
    """Choose the penalty by cross-validation, then fit on all images.

    The search walks from the strongest penalty to the weakest, each fit starting from the one
    before, and ends when the out-of-fold loss has risen twice in a row, or when the time is over
    after the first penalty.

    Args:
        features: Backbone outputs, float32 `[N, D]`, one row per training image; or `[V, N, D]`,
            views of each image, all learned from, the first alone judged.
        labels: Class indices, int64 `[N]`, each in `range(num_classes)`; with several labels
            float32 `[N, C]`, 0 or 1.
        groups: Content hash of each image; equal ones never lie in different folds.
        num_classes: Number of outputs, C.
        recipe: Folds, penalties and bound on iterations.
        poll: Called before every chunk of every pass over the images, so many times a second,
            with the penalties done and all there are; may raise; tells whether the time is over.

    Raises:
        FeaturesNotFinite: A feature is NaN or infinite.
    """
    folds = assign_folds(strata(labels), groups, recipe.folds)
    count = int(folds.max()) + 1
    views = 1 if features.ndim == 2 else len(features)
    rows = features.reshape(views * len(labels), -1)  # [V * N, D]
    effort = _Effort.of(count * num_classes * rows.shape[0] * min(rows.shape))
    folds = folds.repeat(views)  # all views of an image in one fold
    order = torch.argsort(folds, stable=True)  # the images of a fold side by side
    judged = (order < len(labels)).to(rows.device)
    space = PrincipalSpace.of(rows[order.to(rows.device)], effort.dtype)
    labels = torch.cat([labels] * views)[order].to(rows.device)
    bounds = [0, *torch.bincount(folds, minlength=count).cumsum(0).tolist()]
    held_out = [slice(*pair) for pair in pairwise(bounds)]
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced(labels, num_classes).to(effort.dtype)
    problem = SoftmaxProblem(space.rows, labels, num_classes, recipe.max_iterations, weights)
    walk = _Walk(poll, l2_path(recipe, effort.penalties_per_decade))
    search = _Search(problem, held_out, judged, effort, walk)
    l2, parameters, logits = search.run()
    start = torch.stack(parameters).mean(dim=0)  # near the optimum of all images together
    solved = problem.solve(l2, start, effort.tolerance, walk.look)
    walk.end()
    found = torch.empty_like(logits)
    found[order.to(logits.device)] = logits
    loss = mean_loss(logits[judged], labels[judged], None)
    images = len(judged) // views
    return HeadFit(space.layer(solved).cpu(), l2, found[:images].cpu(), loss)


def fit_linear_head(
    features: Tensor, labels: Tensor, num_classes: int, *, l2: float, max_iterations: int = 200
) -> nn.Linear:
    """Fit a linear classifier on frozen backbone features with a given penalty.

    Takes seconds for a few thousand images and is the baseline that every longer recipe has to
    beat. The objective is convex: the result does not depend on a seed.

    Args:
        features: Backbone outputs, float32 `[N, D]`, one row per training image.
        labels: Class indices, int64 `[N]`, each in `range(num_classes)`; with several labels
            float32 `[N, C]`, 0 or 1.
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
    effort = _Effort.of(num_classes * features.shape[0] * min(features.shape))
    space = PrincipalSpace.of(features, effort.dtype)
    problem = SoftmaxProblem(space.rows, labels.to(features.device), num_classes, max_iterations)
    parameters = problem.solve(l2, problem.start(), effort.tolerance, lambda: False)  # [R + 1, C]
    return space.layer(parameters)


def l2_path(recipe: HeadRecipe, per_decade: int = 10) -> list[float]:
    """Return the penalties that are tried, from the strongest to the weakest.

    Args:
        recipe: The two ends, of which no penalty lies outside, and the penalties per decade.
        per_decade: Upper bound on the latter.
    """
    per_decade = min(per_decade, recipe.l2_per_decade)
    steps = math.log10(recipe.l2_strongest / recipe.l2_weakest) * per_decade
    count = 1 + math.floor(steps + 1e-9)  # a logarithm of whole decades may be just below
    return [recipe.l2_strongest * 10 ** (-i / per_decade) for i in range(count)]


def strata(labels: Tensor) -> list[tuple[int, ...]]:
    """Return which images are alike when folds are dealt out, N of them: those of equal labels.

    Args:
        labels: int64 `[N]`, or float32 `[N, C]`, 0 or 1.
    """
    if labels.ndim == 1:
        return [(label,) for label in labels.tolist()]
    return [tuple(row.nonzero()[:, 0].tolist()) for row in labels.cpu()]


def assign_folds(
    labels: Sequence[int | tuple[int, ...]], groups: Sequence[str], folds: int
) -> Tensor:
    """Return the fold of each image, int64 `[N]`: stratified, and a function of content alone.

    Groups of equal images are dealt out class by class in the order of their hash, so that
    neither the order of upload nor a seed changes who is held out with whom.

    Args:
        labels: Class index of each image, or its indices.
        groups: Content hash of each image.
        folds: Number of folds; fewer where there are fewer distinct images.
    """
    label_of: dict[str, int | tuple[int, ...]] = {}
    for label, group in zip(labels, groups, strict=True):
        label_of.setdefault(group, label)
    # Hashed again: image hashes may have been sorted on purpose by whoever drew the val split.
    order = sorted(label_of, key=lambda g: (label_of[g], sha256_of_bytes(f"fold:{g}".encode())))
    count = min(folds, len(order))
    fold_of = {group: position % count for position, group in enumerate(order)}
    return torch.tensor([fold_of[group] for group in groups])


class _Walk:
    """How far the search is, for whoever asks from outside.

    Args:
        poll: See `fit_head`.
        path: The penalties.
    """

    def __init__(self, poll: Poll, path: Sequence[float]) -> None:
        self._poll = poll
        self.path = path
        self._done = 0
        self._total = len(path) + 1  # the last is the fit on all images

    def look(self) -> bool:
        """Report, and tell whether the time is over; may raise."""
        return self._poll(self._done, self._total)

    def next(self) -> None:
        """Count a penalty as done."""
        self._done += 1

    def end(self) -> None:
        """Count all penalties as done, tried or not."""
        self._done = self._total
        self.look()


@dataclass(frozen=True)
class _Search:
    """The choice of the penalty.

    Args:
        problem: On all images, those of a fold side by side.
        held_out: Rows of each fold, K of them.
        judged: Rows by which penalties are compared, bool `[N]`.
        effort: How exactly.
        walk: Asked how to go on, and the penalties.
    """

    problem: SoftmaxProblem
    held_out: Sequence[slice]
    judged: Tensor
    effort: _Effort
    walk: _Walk

    def run(self) -> tuple[float, list[Tensor], Tensor]:
        """Return the penalty, the parameters of each fold's fit, and out-of-fold logits."""
        searched = self.held_out[: self.effort.search_folds]
        end = searched[-1].stop
        start = parameters = [self.problem.start() for _ in searched]
        best: tuple[float, float, list[Tensor], Tensor] | None = None
        worse = 0
        for l2 in self.walk.path:
            parameters, logits = self._fit(l2, searched, parameters)
            self.walk.next()
            loss = self.problem.mean_loss(logits, self.judged[:end])
            worse = 0 if best is None or loss < best[0] else worse + 1
            if not worse:
                best = (loss, l2, parameters, logits)
            if worse == _WORSE_IN_A_ROW or self.walk.look():
                break
        assert best is not None, "every path has a first penalty"
        _, l2, parameters, logits = best
        others = self.held_out[len(searched) :]
        if others:
            # From zero: a start from the solution of another fold has seen what is held out here
            more, more_logits = self._fit(l2, others, [start[0]] * len(others))
            parameters, logits = parameters + more, torch.cat([logits, more_logits])
        return l2, parameters, logits

    def _fit(
        self, l2: float, folds: Sequence[slice], start: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return parameters by fold, and the logits of their held-out images, `[H, C]`."""
        parameters, logits = [], []
        for held_out, from_where in zip(folds, start, strict=True):
            problem = self.problem.without(held_out)
            found = problem.solve(l2, from_where, self.effort.search_tolerance, self.walk.look)
            parameters.append(found)
            logits.append(problem.logits(held_out, found).float())
        return parameters, torch.cat(logits)
