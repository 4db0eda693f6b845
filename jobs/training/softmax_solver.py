"""The solver of a head: L-BFGS on a penalised softmax regression, or C logistic ones.

Its first guess of the curvature is that along principal axes; see `principal_space`. Rows are read
in chunks: memory is bounded by the rows and a few copies of the parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jobs.training.head_loss import mean_loss, sigmoid_pass, softmax_pass

_CHUNK_LOGITS = 1 << 22  # logits that are in memory at once: 16 MiB in float32
_HISTORY_NUMBERS = 1 << 26  # in all pairs of vectors that L-BFGS keeps: 256 MiB in float32
_FEWEST_ITERATIONS = 5  # of a fit when the time is over: still a usable model
_SUFFICIENT_DECREASE = 1e-4  # Nocedal and Wright 2006, section 3.1
_NO_ROWS = slice(0, 0)
_HALVINGS = 20  # a step that needs more is rounding, not descent


@dataclass(frozen=True)
class SoftmaxProblem:
    """A softmax regression, or C logistic ones, on all rows but some.

    Args:
        rows: Float `[N, R]`.
        labels: int64 `[N]`, or 0 and 1 float `[N, C]`.
        num_classes: C.
        max_iterations: Bound on the iterations of one solution.
        weights: What each label counts, shaped as the labels, 1 on average; None: all alike.
        left_out: Rows that are not learned from.
    """

    rows: Tensor
    labels: Tensor
    num_classes: int
    max_iterations: int
    weights: Tensor | None = None
    left_out: slice = field(default_factory=lambda: _NO_ROWS)

    def without(self, rows: slice) -> SoftmaxProblem:
        """Return the problem that does not learn from some rows; all, and it learns from all."""
        if rows.stop - rows.start == len(self.rows):  # one distinct image cannot be split
            rows = _NO_ROWS
        return replace(self, left_out=rows)

    def mean_loss(self, logits: Tensor, judged: Tensor) -> float:
        """Return the mean loss, in nats, as rows count, of the first rows that are judged.

        Args:
            logits: Of the first B rows, `[B, C]`.
            judged: Which of these count, bool `[B]`.
        """
        first = slice(0, len(judged))
        weights = None if self.weights is None else self.weights[first][judged]
        return mean_loss(logits[judged], self.labels[first][judged], weights)

    def start(self) -> Tensor:
        """Return zero parameters `[R + 1, C]`."""
        return self.rows.new_zeros(self.rows.shape[1] + 1, self.num_classes)

    def logits(self, rows: slice, parameters: Tensor) -> Tensor:
        """Return the logits of some rows, `[B, C]`."""
        return torch.addmm(parameters[-1], self.rows[rows], parameters[:-1])

    def solve(self, l2: float, start: Tensor, tolerance: float, stop: Callable[[], bool]) -> Tensor:
        """Return the parameters that minimise the penalised loss.

        Args:
            l2: The penalty.
            start: Parameters to begin with, `[R + 1, C]`.
            tolerance: Distance to the optimum in nats at which to end.
            stop: Asked before every chunk of a pass; after a few iterations it ends the descent.

        Source: Nocedal and Wright 2006, algorithm 7.4 (two loops), 3.1 (backtracking).
        """
        parameters = start
        pairs: deque[tuple[Tensor, Tensor, float]] = deque(
            maxlen=max(3, min(20, _HISTORY_NUMBERS // (2 * start.numel())))
        )
        value, gradient, inverse = self._start_of(l2, parameters, stop)
        for iteration in range(self.max_iterations):
            direction = _descent(gradient, pairs, inverse)
            slope = _dot(gradient, direction)
            # Half the Newton decrement is the distance to the minimum of a quadratic.
            if -slope / 2 <= tolerance or (iteration >= _FEWEST_ITERATIONS and stop()):
                break
            for halving in range(_HALVINGS):
                following = parameters + direction * 0.5**halving
                new_value, new_gradient, _ = self._value(l2, following, stop)
                if new_value <= value + _SUFFICIENT_DECREASE * 0.5**halving * slope:
                    break
            else:  # rounding: there is no way further down
                break
            moved, turned = following - parameters, new_gradient - gradient
            curvature = _dot(moved, turned)
            if curvature > 0:
                pairs.append((moved, turned, curvature))
            parameters, value, gradient = following, new_value, new_gradient
        return parameters

    def _start_of(
        self, l2: float, parameters: Tensor, stop: Callable[[], bool]
    ) -> tuple[float, Tensor, Tensor]:
        """Return loss, gradient, and a guess of the inverse Hessian's diagonal, `[R + 1, 1]`.

        The Hessian of the loss is close to the covariance of the features, diagonal here, times
        the mean variance of a predicted probability.
        """
        value, gradient, variance = self._value(l2, parameters, stop)
        spread = self.rows.square().mean(dim=0)  # [R]
        hessian = torch.cat([variance * spread + 2 * l2, spread.new_tensor([variance])])
        return value, gradient, 1 / hessian[:, None]

    def _value(
        self, l2: float, parameters: Tensor, stop: Callable[[], bool]
    ) -> tuple[float, Tensor, float]:
        """Return the penalised loss, its gradient, and the mean variance of a probability."""
        count = len(self.rows) - (self.left_out.stop - self.left_out.start)
        gradient = torch.zeros_like(parameters)
        loss = torch.zeros((), dtype=torch.float64, device=parameters.device)
        squares = torch.zeros_like(loss)
        for rows in self._chunks():
            stop()
            pass_of = softmax_pass if self.labels.ndim == 1 else sigmoid_pass
            logits = self.logits(rows, parameters)  # [B, C]
            weights = None if self.weights is None else self.weights[rows]
            loss_here, squares_here, residuals = pass_of(logits, self.labels[rows], weights)
            loss += loss_here
            squares += squares_here
            gradient[:-1].addmm_(self.rows[rows].T, residuals)
            gradient[-1] += residuals.sum(dim=0)
        gradient /= count
        weights = parameters[:-1]
        gradient[:-1].add_(weights, alpha=2 * l2)
        value = loss / count + l2 * weights.square().sum(dtype=torch.float64)
        variance = (1 - squares / count) / self.num_classes
        return value.item(), gradient, max(variance.item(), 1e-3 / self.num_classes)

    def _chunks(self) -> Iterator[slice]:
        """Yield the rows that are learned from."""
        size = max(1, _CHUNK_LOGITS // self.num_classes)
        for first, end in ((0, self.left_out.start), (self.left_out.stop, len(self.rows))):
            for start in range(first, end, size):
                yield slice(start, min(start + size, end))


def _descent(
    gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]], inverse: Tensor
) -> Tensor:
    """Return minus the estimated inverse Hessian times the gradient: L-BFGS's two loops."""
    direction = -gradient
    factors = []
    for moved, turned, curvature in reversed(pairs):
        factor = _dot(moved, direction) / curvature
        factors.append(factor)
        direction.sub_(turned, alpha=factor)
    direction = direction * inverse
    if pairs:
        _, turned, curvature = pairs[-1]
        direction *= curvature / _dot(turned, turned * inverse)
    for (moved, turned, curvature), factor in zip(pairs, reversed(factors), strict=True):
        direction.add_(moved, alpha=factor - _dot(turned, direction) / curvature)
    return direction


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.reshape(-1), b.reshape(-1)).item()
