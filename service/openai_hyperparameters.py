"""OpenAI's hyperparameters as parameters of a recipe, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jobs.recipes import AUTO, RECIPES
from service.errors import ValidationFailed
from service.openai_schemas import FineTuningRequest

#: Theirs and ours; `learning_rate_multiplier` is no parameter but a factor on two of them.
_NAMES = {"n_epochs": "epochs", "batch_size": "batch_size"}
_MULTIPLIER = "learning_rate_multiplier"
_RATES = ("lr_head", "lr_backbone")
_LARGEST_MULTIPLIER = 1e4


def hyperparameters_of(body: FineTuningRequest) -> dict[str, Any]:
    """Return what a request sets, wherever it stands there; `"auto"` sets nothing.

    Raises:
        ValidationFailed: It stands in both places.
    """
    in_method = body.method.supervised.hyperparameters if body.method is not None else {}
    given = body.hyperparameters or {}
    if in_method and given:
        message = "stand in `method` too; send them there alone"
        raise ValidationFailed.one("/hyperparameters", "given-twice", message)
    return {name: value for name, value in (in_method or given).items() if value != AUTO}


def recipe_for(hyperparameters: Mapping[str, Any]) -> str:
    """Return the recipe of a request that names none: the quickest that knows what is set."""
    if _MULTIPLIER not in hyperparameters:
        names = {_NAMES.get(name, name) for name in hyperparameters}
        if names <= _fields("head").keys():
            return "head"
    return "finetune"


def parameters_of(recipe: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a known recipe that hyperparameters mean; not yet checked.

    Raises:
        ValidationFailed: The recipe has no learning rate to multiply, or by no such factor.
    """
    parameters = {_NAMES.get(name, name): value for name, value in hyperparameters.items()}
    factor = parameters.pop(_MULTIPLIER, None)
    if factor is None:
        return parameters
    defaults = _fields(recipe)
    pointer = f"/hyperparameters/{_MULTIPLIER}"
    if not set(_RATES) <= defaults.keys():
        raise ValidationFailed.one(pointer, "not-offered", f"recipe {recipe} has no learning rate")
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not 0 < factor <= _LARGEST_MULTIPLIER:
        message = f"a number above 0, at most {_LARGEST_MULTIPLIER:.0f}"
        raise ValidationFailed.one(pointer, "out-of-bounds", message)
    return {**{rate: defaults[rate] * factor for rate in _RATES}, **parameters}


def echoed(recipe: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's parameters under OpenAI's names, and the others under ours."""
    back = {ours: theirs for theirs, ours in _NAMES.items()}
    shown = {back.get(name, name): value for name, value in parameters.items()}
    default = _fields(recipe).get("lr_head")
    factor = parameters["lr_head"] / default if default and "lr_head" in parameters else AUTO
    return {**dict.fromkeys(_NAMES, AUTO), _MULTIPLIER: factor, **shown}


def _fields(recipe: str) -> dict[str, Any]:
    """Return the defaults of a recipe's parameters; none if there is no such recipe."""
    known = RECIPES.get(recipe)
    return {} if known is None else {f.name: f.default for f in dataclasses.fields(known)}
