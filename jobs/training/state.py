"""What fine-tuning can go on from: model, average, optimizer, step, and the best candidate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jobs.training.averaging import WeightAverage
from jobs.training.loss_scale import LossScale
from models_cache.backbones import Classifier

_MODEL, _AVERAGE, _OPTIMIZER, _BEST = "model/", "average/", "optimizer/", "best/"


@dataclass
class TrainingState:
    """The part of a training that changes.

    Args:
        model: Its parameters are updated in place.
        optimizer: Over the parameters that learn.
        average: Of the weights; None where the weights themselves are the candidates.
        loss_scale: Of passes in float16; None for other types.
        step: Optimizer steps done.
        epoch_loss: Sum over the images of the current epoch of their loss, in nats.
        compared_step: The last step whose weights were compared on the held-out images; -1
            before the first.
        best_step: The step of the best candidate.
        best_metrics: What was measured of it; empty before the first comparison.
        most_images: How many images fit into memory at once; None while a whole batch did.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    loss_scale: LossScale | None = None
    step: int = 0
    epoch_loss: float = 0.0
    compared_step: int = -1
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    most_images: int | None = None
    _best_tensors: dict[str, Tensor] = field(default_factory=dict)

    def at_once(self, batch_size: int) -> int:
        """Return how many images of a batch pass the network at once."""
        return batch_size if self.most_images is None else min(batch_size, self.most_images)

    @contextmanager
    def candidate(self) -> Iterator[None]:
        """Inside, the model is what would be published: the average, where there is one."""
        if self.average is None:
            yield
            return
        self.average.exchange()
        try:
            yield
        finally:
            self.average.exchange()

    def keep_as_best(self, metrics: dict[str, float]) -> None:
        """Make the present candidate the best one."""
        self.best_step, self.best_metrics = self.step, metrics
        with self.candidate():
            self._best_tensors = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }

    def load_best(self) -> None:
        """Put the best candidate's weights into the model; training cannot go on after it."""
        self.model.load_state_dict(self._best_tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that `restore` needs, by name."""
        found = {_MODEL + name: value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            found |= {_AVERAGE + name: value for name, value in self.average.values.items()}
        for index, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{_OPTIMIZER}{index}/{name}"] = value
        if self.best_step != self.step:  # else they are the present candidate's
            found |= {_BEST + name: value for name, value in self._best_tensors.items()}
        return found

    def facts(self) -> dict[str, Any]:
        """Return the numbers that `restore` needs, JSON-ready."""
        return {
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "compared_step": self.compared_step,
            "best": {"step": self.best_step, "metrics": self.best_metrics},
            "most_images": self.most_images,
            "loss_scale": None if self.loss_scale is None else self.loss_scale.as_json(),
        }

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become the state that `tensors` and `facts` were taken from."""
        self.step, self.epoch_loss = int(facts["step"]), float(facts["epoch_loss"])
        self.compared_step = int(facts["compared_step"])
        self.most_images = facts["most_images"]
        if self.loss_scale is not None:
            self.loss_scale = LossScale(**facts["loss_scale"])
        best = facts["best"]
        self.model.load_state_dict(_under(_MODEL, tensors))
        if self.average is not None:
            self.average.restore(_under(_AVERAGE, tensors))
        for index, parameter in enumerate(self._parameters()):
            own = _under(f"{_OPTIMIZER}{index}/", tensors)
            if own:
                self.optimizer.state[parameter] = {
                    name: _laid_out_like(parameter, value) for name, value in own.items()
                }
        if best["step"] == self.step:
            self.keep_as_best(dict(best["metrics"]))
            return
        self.best_step, self.best_metrics = int(best["step"]), dict(best["metrics"])
        self._best_tensors = _under(_BEST, tensors)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return an optimizer tensor in the parameter's memory order: sums run in the same order."""
    if value.shape != parameter.shape:
        return value.clone()  # AdamW's count of steps stays on the CPU
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
