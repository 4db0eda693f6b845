from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from jobs.errors import RecipeInvalid
from jobs.recipes import AUTO, RECIPES, FinetuneRecipe, HeadRecipe, RecipeFacts, as_json, resolve

FACTS = RecipeFacts(train_images=245, stages=19, has_batch_norm=True)


@pytest.mark.parametrize("name", RECIPES)
def test_every_auto_becomes_a_value_and_every_value_is_json(name: str) -> None:
    recipe = resolve(name, {}, FACTS)
    assert AUTO not in as_json(recipe).values()
    assert all(isinstance(value, int | float | str) for value in as_json(recipe).values())


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_says_what_it_is_and_defaults_keep_their_own_bounds(name: str) -> None:
    for field in dataclasses.fields(RECIPES[name]):
        assert field.metadata["doc"].endswith("."), field.name
        assert field.metadata.get("auto", False) == (field.default == AUTO)
        if field.default != AUTO:
            recipe = resolve(name, {field.name: field.default}, FACTS)
            assert getattr(recipe, field.name) == field.default


@pytest.mark.parametrize(
    ("name", "parameters", "parameter"),
    [
        ("head", {"l3": 1}, "l3"),
        ("head", {"folds": 1}, "folds"),
        ("head", {"folds": 2.5}, "folds"),
        ("head", {"folds": True}, "folds"),
        ("head", {"folds": "auto"}, "folds"),
        ("head", {"folds": None}, "folds"),
        ("head", {"batch_size": 10**400}, "batch_size"),
        ("head", {"l2_weakest": 1.0, "l2_strongest": 0.1}, "l2_weakest"),
        ("finetune", {"lr_head": math.nan}, "lr_head"),
        ("finetune", {"lr_head": math.inf}, "lr_head"),
        ("finetune", {"lr_head": 0}, "lr_head"),
        ("finetune", {"warmup_fraction": 1}, "warmup_fraction"),
        ("finetune", {"augmentation": "mixup"}, "augmentation"),
        ("finetune", {"augmentation": ["crop"]}, "augmentation"),
        ("scratch", {"tune": 3}, "tune"),
        ("tomorrow", {}, "recipe"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(
    name: str, parameters: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(RecipeInvalid) as refused:
        resolve(name, parameters, FACTS)
    assert refused.value.parameter == parameter


def test_given_values_replace_auto_and_whole_numbers_serve_as_fractions() -> None:
    recipe = resolve("finetune", {"epochs": 2, "weight_decay": 0, "tune": 4}, FACTS)
    assert isinstance(recipe, FinetuneRecipe)
    assert (recipe.epochs, recipe.weight_decay, recipe.tune) == (2, 0.0, 4)
    assert isinstance(recipe.weight_decay, float)


@pytest.mark.parametrize(
    ("images", "has_batch_norm", "expected"),
    [(245, True, "eval"), (50_000, True, "train"), (50_000, False, "eval")],
)
def test_batch_norm_keeps_its_statistics_on_few_images(
    images: int, has_batch_norm: bool, expected: str
) -> None:
    facts = dataclasses.replace(FACTS, train_images=images, has_batch_norm=has_batch_norm)
    recipe = resolve("finetune", {"batch_norm": "auto"}, facts)
    assert isinstance(recipe, FinetuneRecipe)
    assert recipe.batch_norm == expected


@pytest.mark.parametrize(
    ("imbalance", "expected"), [(1.0, "none"), (2.9, "none"), (3.0, "balanced")]
)
def test_classes_of_very_different_size_are_balanced(imbalance: float, expected: str) -> None:
    facts = dataclasses.replace(FACTS, imbalance=imbalance)
    recipe = resolve("finetune", {}, facts)
    assert isinstance(recipe, FinetuneRecipe)
    assert recipe.class_weights == expected
    chosen = resolve("finetune", {"class_weights": "none"}, facts)
    assert as_json(chosen)["class_weights"] == "none"


def test_more_images_need_fewer_epochs() -> None:
    epochs = [
        as_json(resolve("finetune", {}, dataclasses.replace(FACTS, train_images=images)))["epochs"]
        for images in (10, 245, 5_000, 100_000)
    ]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] >= 1


def test_a_recipe_cannot_be_changed() -> None:
    recipe = HeadRecipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.folds = 3  # type: ignore[misc]
