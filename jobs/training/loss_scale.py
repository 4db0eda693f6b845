"""Gradients of passes in float16, kept above what float16 rounds to zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_GREATEST = 2.0**24
_STEADY_STEPS = 2000  # with one scale before a greater one is tried


@dataclass
class LossScale:
    """What a loss is multiplied with before its backward pass; gradients are divided by it.

    A power of two, so that neither rounds. Where a gradient overflows, the same batch is learned
    from again with half the scale: no batch is passed over, and a gradient that is not finite
    even with scale 1 is told at once. torch's `GradScaler` passes over the batch, and looks at the
    device once more in every step than `step` does anyway.

    Args:
        value: The scale.
        steady_steps: Steps since it last changed.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """

    value: float = 2.0**16
    steady_steps: int = 0

    @classmethod
    def needed_for(cls, training_dtype: torch.dtype) -> LossScale | None:
        """Return the scale that a training in a type begins with; None where it needs none."""
        return cls() if training_dtype == torch.float16 else None

    def undo(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.value)

    def halve(self) -> bool:
        """Take half the scale; False if it was 1 already."""
        if self.value == 1.0:
            return False
        self.value, self.steady_steps = self.value / 2, 0
        return True

    def after_step(self) -> None:
        """Count a step that was made; try twice the scale after many."""
        self.steady_steps += 1
        if self.steady_steps == _STEADY_STEPS:
            self.value, self.steady_steps = min(2 * self.value, _GREATEST), 0

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return asdict(self)
