"""The recipes of `jobs.recipes` as pydantic models: validation and JSON Schema from one source."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from jobs.errors import RecipeInvalid
from jobs.recipes import RECIPES
from service.errors import ValidationFailed

_BOUNDS = ("ge", "gt", "le", "lt")


@cache
def parameters_model(recipe: str) -> type[BaseModel]:
    """Return the pydantic model of a recipe's parameters: every field optional, none unknown.

    Raises:
        RecipeInvalid: There is no such recipe.
    """
    if recipe not in RECIPES:
        raise RecipeInvalid(recipe, "recipe", f"unknown; there are {', '.join(RECIPES)}")
    hints = get_type_hints(RECIPES[recipe])
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(RECIPES[recipe]):
        facts = field.metadata
        bounds = {name: facts[name] for name in _BOUNDS if name in facts}
        kind = Literal[facts["choices"]] if "choices" in facts else hints[field.name]
        bounded: Any = Field(**bounds) if bounds else None
        annotated: Any = kind if bounded is None else Annotated[kind, bounded]
        if facts.get("auto"):
            annotated = annotated | Literal["auto"]
        fields[field.name] = (annotated, Field(field.default, description=facts["doc"]))
    configuration = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(f"{recipe.capitalize()}Parameters", __config__=configuration, **fields)


def check_parameters(recipe: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return `parameters` unchanged if the recipe takes them.

    Raises:
        RecipeInvalid: There is no such recipe.
        ValidationFailed: A parameter is unknown or out of bounds.
    """
    model = parameters_model(recipe)
    try:
        model.model_validate(parameters)
    except ValidationError as error:
        faults = [
            {**fault, "loc": ("parameters", fault["loc"][0])}
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ValidationFailed.of(faults) from None
    return parameters
