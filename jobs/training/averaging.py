"""An exponential moving average of the weights: a smoother candidate than the last step's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of what learns, and of the statistics that move with it.

    Early in a training the decay is smaller, `(1 + step) / (10 + step)`: a run of 50 steps with
    decay 0.999 would else still be mostly what it started from.

    Args:
        model: Its present values are the first of the average.
        decay: What is kept of the average per step, at most; above 0 and below 1.

    Source: Polyak and Juditsky 1992, SIAM J. Control Optim. 30:838 (averaging); the warm-up is
    that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        self._live: dict[str, Tensor] = {**learning, **buffers}
        self.values = {name: value.detach().clone() for name, value in self._live.items()}

    def update(self, step: int) -> None:
        """Take in the model's present values, after optimizer step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        present = [value.detach() for value in self._live.values()]
        get_ema_multi_avg_fn(decay)(list(self.values.values()), present, step)

    def exchange(self) -> None:
        """Put the average into the model, and the model's values here; twice changes nothing."""
        for name, live in self._live.items():
            live.data, self.values[name] = self.values[name], live.data

    def restore(self, values: dict[str, Tensor]) -> None:
        """Become the average that `values` was taken from, in the parameters' memory order."""
        with torch.no_grad():
            for name, own in self.values.items():
                own.copy_(values[name])
