"""OpenAI's hyperparameters mean a recipe and its parameters."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.recipes import FinetuneRecipe
from service.errors import ValidationFailed
from service.json_body import validate
from service.openai_hyperparameters import echoed, hyperparameters_of, parameters_of, recipe_for
from service.openai_schemas import FineTuningRequest


def request(**fields: Any) -> FineTuningRequest:  # noqa: ANN401
    body = {"training_file": "ds_1", "model": "mobilenet_v2", **fields}
    return validate(FineTuningRequest, body)


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({}, "head"),
        ({"batch_size": 8}, "head"),
        ({"views": 4}, "head"),
        ({"n_epochs": 3}, "finetune"),
        ({"learning_rate_multiplier": 2}, "finetune"),
        ({"mixup_alpha": 0.2, "batch_size": 8}, "finetune"),
    ],
)
def test_the_quickest_recipe_that_knows_what_is_set_is_used(
    given: dict[str, Any], recipe: str
) -> None:
    assert recipe_for(hyperparameters_of(request(hyperparameters=given))) == recipe


def test_auto_sets_nothing_wherever_it_stands() -> None:
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    method = {"type": "supervised", "supervised": {"hyperparameters": auto}}
    assert hyperparameters_of(request(hyperparameters=auto)) == {}
    assert hyperparameters_of(request(method=method)) == {}
    with pytest.raises(ValidationFailed):
        hyperparameters_of(request(method=method, hyperparameters={"n_epochs": 1}))


def test_a_multiplier_scales_the_rates_and_comes_back() -> None:
    given = {"n_epochs": 3, "learning_rate_multiplier": 0.5, "patience_epochs": 1}
    parameters = parameters_of("finetune", given)
    assert parameters == {
        "epochs": 3,
        "patience_epochs": 1,
        "lr_head": FinetuneRecipe.lr_head / 2,
        "lr_backbone": FinetuneRecipe.lr_backbone / 2,
    }
    told = echoed("finetune", parameters)
    assert told["learning_rate_multiplier"] == 0.5
    assert (told["n_epochs"], told["batch_size"], told["patience_epochs"]) == (3, "auto", 1)
    assert echoed("head", {})["learning_rate_multiplier"] == "auto"


@pytest.mark.parametrize(("recipe", "factor"), [("head", 2), ("finetune", 0), ("finetune", "fast")])
def test_a_multiplier_of_nothing_is_refused(recipe: str, factor: object) -> None:
    with pytest.raises(ValidationFailed) as refused:
        parameters_of(recipe, {"learning_rate_multiplier": factor})
    assert refused.value.faults[0]["pointer"] == "/hyperparameters/learning_rate_multiplier"
