"""Recipes: frozen, typed hyper-parameters with named presets, and how "auto" becomes a value.

The one place where a parameter's default, bounds and meaning stand. The service builds its JSON
schemas from these fields, the child resolves every `"auto"` from facts about the data and the
backbone and reports the result, so that a job's receipt names every number that was used.

A field's metadata: `doc` (one sentence, with the unit), `ge`/`gt`/`le`/`lt` (bounds), `choices`
(allowed strings), `auto` (whether `"auto"` may be given; it is then the default).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.errors import RecipeInvalid

AUTO: Any = "auto"

# Below this many training images BatchNorm's batch statistics are noise: they stay as pretrained.
_BATCH_NORM_TRAINS_FROM_IMAGES = 2000
# Optimizer steps a fine-tuning aims at, within the bounds on epochs below.
_FINETUNE_STEPS = 48
_SCRATCH_STEPS = 1000
# From this ratio of the largest class to the smallest on, classes are weighed by their counts.
_IMBALANCED_FROM = 3.0


def _parameter(default: Any, doc: str, **metadata: Any) -> Any:  # noqa: ANN401 - any field type
    """Declare one field: its default, its sentence and its bounds."""
    auto = {"auto": True} if default == AUTO else {}
    return dataclasses.field(default=default, metadata={"doc": doc, **auto, **metadata})


def _batch_size(default: Any = 32) -> Any:  # noqa: ANN401
    return _parameter(default, "Images per optimizer step.", ge=1, le=1024)


def _class_weights() -> Any:  # noqa: ANN401
    return _parameter(
        AUTO, "Whether images of rarer classes weigh more in the loss, so that all classes count "
        "the same.", choices=("none", "balanced"),
    )  # fmt: skip


@dataclass(frozen=True)
class HeadRecipe:
    """A linear classifier on the features of the frozen backbone: seconds, no seed, no epochs.

    Every image passes the backbone once; the features are cached and the head is fitted on them
    by L-BFGS, its regularisation chosen by cross-validation on the training images.

    Expected on `hymenoptera` (244 training and 153 val photographs): val accuracy 0.954 with
    `mobilenet_v2` (out of fold 0.951), 0.922 with `squeezenet1_1` (0.889). On 2 CPU cores the
    feature pass takes 3 s, the choice of the penalty and the fit 0.3 s.
    """

    folds: int = _parameter(5, "Cross-validation folds over the training images.", ge=2, le=20)
    l2_strongest: float = _parameter(
        10.0,
        "Strongest penalty tried: mean loss in nats + penalty * squared weights.",
        gt=0,
        le=1e6,
    )
    l2_weakest: float = _parameter(1e-5, "Weakest penalty tried.", gt=0, le=1e6)
    l2_per_decade: int = _parameter(2, "Penalties tried per factor of ten.", ge=1, le=10)
    max_iterations: int = _parameter(200, "Bound on L-BFGS iterations of one fit.", ge=1, le=10_000)
    batch_size: int = _parameter(32, "Images per forward pass of the backbone.", ge=1, le=1024)
    views: int = _parameter(
        1,
        "Views of each image that are learned from: the centre, mirrored, random ones; images are "
        "judged by the centre alone.",
        ge=1,
        le=16,
    )
    view_policy: Literal["crop", "trivialaugment"] = _parameter(
        "crop", "What random views are: crops, or crops changed by TrivialAugment.",
        choices=("crop", "trivialaugment"),
    )  # fmt: skip
    class_weights: Literal["none", "balanced"] = _class_weights()


@dataclass(frozen=True)
class _TrainingRecipe:
    """What fine-tuning and training from scratch have in common."""

    epochs: int = _parameter(AUTO, "Passes over the training images.", ge=1, le=1000)
    batch_size: int = _batch_size()
    lr_head: float = _parameter(1e-4, "Highest learning rate of the head.", gt=0, le=10)
    lr_backbone: float = _parameter(
        3e-5, "Highest learning rate of the backbone's last stage.", gt=0, le=10
    )
    layer_decay: float = _parameter(
        0.8, "Factor on the learning rate from each stage to the one before it.", gt=0, le=1
    )
    warmup_fraction: float = _parameter(
        0.1, "Part of all steps over which learning rates rise from zero.", ge=0, lt=1
    )
    weight_decay: float = _parameter(0.01, "Decoupled weight decay of AdamW.", ge=0, le=1)
    label_smoothing: float = _parameter(
        0.0, "Part of each target spread evenly over all classes.", ge=0, lt=1
    )
    augmentation: Literal["none", "flip", "crop", "randaugment", "trivialaugment"] = _parameter(
        "crop",
        "none; flip left to right; crop: flip and random resized crop; randaugment, "
        "trivialaugment: also two, or one, changes of shape or colour.",
        choices=("none", "flip", "crop", "randaugment", "trivialaugment"),
    )
    crop_area_min: float = _parameter(
        0.7, "Smallest part of an image's area that a random crop keeps.", gt=0, le=1
    )
    mixup_alpha: float = _parameter(
        0.0, "Blend each image with another of its batch, parts from Beta(a, a); 0: off.",
        ge=0, le=10,
    )  # fmt: skip
    cutmix_alpha: float = _parameter(
        0.0, "Paste a rectangle of another image of the batch, area from Beta(a, a); 0: off.",
        ge=0, le=10,
    )  # fmt: skip
    class_weights: Literal["none", "balanced"] = _class_weights()
    ema_decay: float = _parameter(
        0.0, "Candidates are the moving average of the weights with this decay; 0: the weights.",
        ge=0, lt=1,
    )  # fmt: skip
    patience_epochs: int = _parameter(
        0, "Stop after so many epochs without a better candidate; 0: never.", ge=0, le=1000
    )
    best_epoch: Literal["accuracy", "loss"] = _parameter(
        "accuracy", "Figure on the held-out images by which the best epoch is chosen.",
        choices=("accuracy", "loss"),
    )  # fmt: skip
    batch_norm: Literal["eval", "train"] = _parameter(
        AUTO, "Whether BatchNorm keeps its statistics or learns new ones.",
        choices=("eval", "train"),
    )  # fmt: skip


@dataclass(frozen=True)
class FinetuneRecipe(_TrainingRecipe):
    """LP-FT: the fitted head first, then the whole network from it, the best epoch kept.

    The fitted head itself is candidate 0, so on the val images the result is never worse than
    recipe `head`; learning rates fall from the head towards the input.

    Expected on `hymenoptera` with `mobilenet_v2`: val accuracy 0.961 to 0.967 (three seeds; the
    head alone 0.954) in about a minute on 2 CPU cores.

    Source: Kumar et al. 2022, arXiv:2202.10054 (LP-FT); Howard and Ruder 2018, arXiv:1801.06146
    (discriminative learning rates).
    """

    tune: int = _parameter(
        AUTO, "Backbone stages that learn, counted from the output; the others stay frozen.",
        ge=0, le=10_000,
    )  # fmt: skip
    head_folds: int = _parameter(5, "Cross-validation folds of the first phase.", ge=2, le=20)
    head_max_iterations: int = _parameter(
        200, "Bound on L-BFGS iterations of the first phase.", ge=1, le=10_000
    )


@dataclass(frozen=True)
class AutoRecipe(FinetuneRecipe):
    """Progressive: the head is served within seconds, a fine-tuned network replaces it if better.

    The fitted head is published at once and becomes alias `default`; then the whole network is
    fine-tuned from it and published as the next version. `default` moves on to it only if its
    bounded loss on the held-out images is lower beyond noise (paired bootstrap, 95 %);
    otherwise both versions are kept and the job's `result.reason` says why. A `test` split is
    reported and decides nothing. Without a val split a fifth of the training images is held out.

    Source: as `finetune`; Efron and Tibshirani 1993 (bootstrap).
    """

    best_epoch: Literal["accuracy", "loss"] = _parameter(
        "loss", "Figure on the held-out images by which the best epoch is chosen.",
        choices=("accuracy", "loss"),
    )  # fmt: skip


@dataclass(frozen=True)
class ScratchRecipe(_TrainingRecipe):
    """No pretrained weights, the whole network from random ones: the honest baseline.

    Expected on `hymenoptera` with `mobilenet_v2`: val accuracy 0.74 after 15 epochs, a few minutes
    on 2 CPU cores; 244 photographs are too few to learn to see from.
    """

    lr_head: float = _parameter(2e-3, "Highest learning rate of the head.", gt=0, le=10)
    lr_backbone: float = _parameter(2e-3, "Highest learning rate of the backbone.", gt=0, le=10)
    layer_decay: float = _parameter(
        1.0, "Factor on the learning rate from each stage to the one before it.", gt=0, le=1
    )


Recipe = HeadRecipe | FinetuneRecipe | ScratchRecipe

RECIPES: dict[str, type[Recipe]] = {
    "head": HeadRecipe,
    "finetune": FinetuneRecipe,
    "auto": AutoRecipe,
    "scratch": ScratchRecipe,
}


@dataclass(frozen=True)
class RecipeFacts:
    """What `"auto"` is resolved from.

    Args:
        train_images: Images that are learned from.
        stages: Stages of the backbone that can be frozen, from input to output.
        has_batch_norm: Whether the backbone has BatchNorm layers.
        imbalance: Images of the largest class per image of the smallest.
    """

    train_images: int
    stages: int
    has_batch_norm: bool
    imbalance: float = 1.0


def resolve(name: str, parameters: Mapping[str, Any], facts: RecipeFacts) -> Recipe:
    """Return the recipe with every `"auto"` replaced by a value, and every bound checked.

    Raises:
        RecipeInvalid: The recipe or a parameter is unknown, or a value is out of its bounds.
    """
    if name not in RECIPES:
        raise RecipeInvalid(name, "recipe", f"there is no such recipe; there are {list(RECIPES)}")
    recipe = RECIPES[name]
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in fields:
            raise RecipeInvalid(name, key, f"unknown; there are {', '.join(fields)}")
        if value == AUTO and fields[key].metadata.get("auto"):
            continue
        values[key] = _checked(name, fields[key], value)
    given = {"batch_size": fields["batch_size"].default, **values}
    for key, field in fields.items():
        if field.default == AUTO and key not in values:
            values[key] = _automatic(name, key, int(given["batch_size"]), facts)
    resolved = recipe(**values)
    if isinstance(resolved, HeadRecipe) and resolved.l2_weakest > resolved.l2_strongest:
        raise RecipeInvalid(name, "l2_weakest", "must be at most l2_strongest")
    return resolved


def as_json(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's values by name: what `resolved` shows and checkpoints are keyed by."""
    return dataclasses.asdict(recipe)


def _automatic(recipe: str, key: str, batch_size: int, facts: RecipeFacts) -> int | str:
    """Return what `"auto"` means for one parameter."""
    if key == "epochs":
        steps_per_epoch = math.ceil(facts.train_images / batch_size)
        if recipe == "scratch":
            return min(30, max(10, math.ceil(_SCRATCH_STEPS / steps_per_epoch)))
        return min(12, max(3, math.ceil(_FINETUNE_STEPS / steps_per_epoch)))
    if key == "batch_norm":
        if not facts.has_batch_norm:
            return "eval"
        small = facts.train_images < _BATCH_NORM_TRAINS_FROM_IMAGES
        return "eval" if small and recipe != "scratch" else "train"
    if key == "class_weights":
        return "balanced" if facts.imbalance >= _IMBALANCED_FROM else "none"
    assert key == "tune", f"no rule for {key}"
    return facts.stages


def _checked(recipe: str, field: dataclasses.Field[Any], value: Any) -> Any:  # noqa: ANN401
    """Return `value` in the field's type, or raise what is wrong with it."""
    choices = field.metadata.get("choices")
    if choices is not None:
        if value not in choices:
            raise RecipeInvalid(recipe, field.name, f"{value!r} is not one of {', '.join(choices)}")
        return value
    kinds = (int,) if field.type == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        words = "a whole number" if field.type == "int" else "a number"
        raise RecipeInvalid(recipe, field.name, f"{value!r} is not {words}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeInvalid(recipe, field.name, f"{value!r} is not finite")
    for bound, holds, words in _BOUNDS:
        limit = field.metadata.get(bound)
        if limit is not None and not holds(value, limit):
            raise RecipeInvalid(recipe, field.name, f"{value!r} must be {words} {limit}")
    return float(value) if field.type == "float" else value


_BOUNDS = (
    ("ge", operator.ge, "at least"),
    ("gt", operator.gt, "greater than"),
    ("le", operator.le, "at most"),
    ("lt", operator.lt, "less than"),
)
