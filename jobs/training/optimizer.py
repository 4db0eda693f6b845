"""Which parameters learn, how fast, and which layers keep their statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from jobs.recipes import FinetuneRecipe, ScratchRecipe
from models_cache.backbones import Classifier, parameter_groups_in_depth_order

_PEAK = "peak_learning_rate"  # of a parameter group, before the schedule's factor


def build_optimizer(
    model: Classifier, recipe: FinetuneRecipe | ScratchRecipe
) -> torch.optim.Optimizer:
    """Return AdamW over the stages that learn; the others are frozen here.

    Learning rates fall by `layer_decay` from each stage to the one before it. Biases and
    normalisation are not decayed: pulling them to zero regularises nothing.
    """
    stages = parameter_groups_in_depth_order(model.backbone)
    tuned = recipe.tune if isinstance(recipe, FinetuneRecipe) else len(stages)
    groups = list(_groups(list(model.head.parameters()), recipe.lr_head, recipe.weight_decay))
    for depth, parameters in enumerate(reversed(stages)):
        if depth < tuned:
            rate = recipe.lr_backbone * recipe.layer_decay**depth
            groups.extend(_groups(parameters, rate, recipe.weight_decay))
        for parameter in parameters:
            parameter.requires_grad_(depth < tuned)
    return torch.optim.AdamW(groups)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every learning rate to its peak times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group[_PEAK] * factor


def prepare_modules(model: Classifier, recipe: FinetuneRecipe | ScratchRecipe) -> None:
    """Put the model in training mode, as far as the recipe says and parameters learn.

    What is frozen as a whole stays in eval mode: its BatchNorm statistics must not move either.
    """
    model.train()
    for module in model.modules():
        learning = [parameter.requires_grad for parameter in module.parameters()]
        if learning and not any(learning):
            module.eval()
    if recipe.batch_norm == "eval":
        for module in _learning_batch_norms(model):
            module.eval()  # it keeps its statistics: those of a few images per batch are noise


@contextmanager
def fixed_statistics(model: Classifier, fixed: bool) -> Iterator[None]:
    """Inside, BatchNorm takes the statistics it has, if `fixed`: one image has none of its own."""
    modules = _learning_batch_norms(model) if fixed else []
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


def _learning_batch_norms(model: Classifier) -> list[nn.Module]:
    batch_norm = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, batch_norm) and m.training]


def _groups(
    parameters: list[nn.Parameter], rate: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    for chosen, decay in ((matrices, weight_decay), (vectors, 0.0)):
        if chosen:
            yield {"params": chosen, "lr": rate, _PEAK: rate, "weight_decay": decay}
