"""One attempt of a fine-tuning job, from its spec to its result: the order of things.

weights -> decode -> features -> head -> train -> evaluate -> publish. Recipe `head` has no phase
`train`, recipe `scratch` neither `features` nor `head`; a checkpoint replaces these two. Recipe
`auto` publishes twice: the head before phase `train`, the network at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from jobs.errors import NotReproducible, RecipeInvalid
from jobs.eta import TrainingEstimate, TrainingPlan
from jobs.progress import ProgressWriter
from jobs.receipts import CODE_VERSION, differences
from jobs.recipes import (
    AutoRecipe,
    FinetuneRecipe,
    HeadRecipe,
    Recipe,
    RecipeFacts,
    ScratchRecipe,
    as_json,
    resolve,
)
from jobs.tasks.kinds import task_of
from jobs.training import doctor
from jobs.training.averaging import WeightAverage
from jobs.training.checkpoint import Checkpoint
from jobs.training.device import peak_memory
from jobs.training.evaluate import Outputs, predict_outputs
from jobs.training.frozen import choose_pass, features_of_view, no_pass
from jobs.training.head import HeadFit, fit_head
from jobs.training.interruption import Interruption
from jobs.training.loop import Surroundings, TrainingData, fine_tune
from jobs.training.loss_scale import LossScale
from jobs.training.optimizer import build_optimizer
from jobs.training.outcome import Ready, Trained, publish
from jobs.training.place import Place
from jobs.training.progressive import Published, conclude, publish_head, repeat_head
from jobs.training.schedule import Schedule
from jobs.training.sources import Backbone, decode_dataset, fetch_backbone, split_dataset
from jobs.training.spec import TrainSpec
from jobs.training.state import TrainingState
from jobs.training.views import view_names
from models_cache import faults
from models_cache.artifacts import Kind
from models_cache.backbones import (
    Classifier,
    has_batch_norm,
    parameter_groups_in_depth_order,
)
from models_cache.durable import canonical_json, sha256_of_bytes


def train(spec: TrainSpec, progress: ProgressWriter, interruption: Interruption) -> dict[str, Any]:
    """Run an attempt and return its result line.

    Raises:
        GraftError: A fact that the user can act on.
        StoppedOnRequest: SIGTERM arrived; the next attempt goes on from the last checkpoint.
    """
    place = Place.of(spec, progress, interruption)
    doctor.require_sound_upload(place)
    with place.memory():
        backbone = fetch_backbone(place)
        dataset = decode_dataset(place, backbone.preprocessing)
        data = split_dataset(place, dataset, backbone.preprocessing)
        ready = settle(place, backbone, data)
        kind = _kind_of_speed(ready)
        estimate = TrainingEstimate(_plan(ready), place.rates.read(kind))
        place.progress.expect(estimate)
        checkpoint = _matching(place.checkpoint, ready)
        if checkpoint is None and place.checkpoint is not None:  # features are needed again
            ready = settle(replace(place, checkpoint=None), backbone, data)
        if isinstance(ready.recipe, HeadRecipe):
            features = frozen_features(ready)
            result = publish(ready, _head_only(ready, features, _fit(ready, features)))
        else:
            result = _whole_network(ready, ready.recipe, checkpoint)
        place.rates.write(kind, estimate.rates())
        return {**result, "resources": peak_memory(place.device)}


def settle(place: Place, backbone: Backbone, data: TrainingData) -> Ready:
    """Settle the recipe and the engine, and report both."""
    spec = place.spec
    if backbone.weights is None and spec.recipe != "scratch":
        raise RecipeInvalid(spec.recipe, "weights", "this recipe needs pretrained weights")
    facts = RecipeFacts(
        train_images=len(data.train),
        stages=len(parameter_groups_in_depth_order(backbone.module)),
        has_batch_norm=has_batch_norm(backbone.module),
        imbalance=_imbalance(data),
    )
    recipe = resolve(spec.recipe, spec.parameters, facts)
    frozen = no_pass()
    if not isinstance(recipe, ScratchRecipe):
        frozen = choose_pass(place, backbone, data.dataset, recipe.batch_size, _views(recipe))
    task = task_of(data.dataset.manifest)
    ready = Ready(place, backbone, data, task, recipe, frozen)
    receipt = {
        "dataset": data.dataset.manifest.digest,
        "recipe": {"name": spec.recipe, "parameters": as_json(recipe)},
        "weights": backbone.weights,
        "preprocessing": backbone.preprocessing.as_json(),
        "numerics": ready.numerics,
        "seed": spec.seed,
        CODE_VERSION: spec.lineage.get(CODE_VERSION),
    }
    place.progress.resolved(receipt)
    if spec.reproduce is not None:
        _check_receipt(place, spec.reproduce, receipt)
    return ready


def _check_receipt(place: Place, reproduce: Mapping[str, Any], receipt: Mapping[str, Any]) -> None:
    """Leave before anything is learned if a reproduction cannot give the same bits.

    Raises:
        NotReproducible: Something is not as the receipt of the job that is repeated says.
    """
    recorded = reproduce["receipt"]
    found = differences(recorded, receipt)
    if found:
        raise NotReproducible(reproduce["job"], len(found), ", ".join(found))
    before, now = recorded.get(CODE_VERSION), receipt[CODE_VERSION]
    if before != now:
        text = f"the job was run by version {before} of this program, this is {now}"
        place.progress.warning("other-code-version", text)


def _imbalance(data: TrainingData) -> float:
    """Return how many images the largest class has for each of the smallest."""
    targets = data.targets(data.train)
    counts = torch.bincount(targets) if targets.ndim == 1 else targets.sum(dim=0)
    counts = counts.clamp(min=1)
    return float(counts.max() / counts.min())


def _plan(ready: Ready) -> TrainingPlan:
    """Return how much there is to do, for the estimate of the time that is left."""
    recipe, data = ready.recipe, ready.data
    images = len(data.dataset.manifest.images)
    if isinstance(recipe, HeadRecipe):
        return TrainingPlan(images=images)
    schedule = Schedule(
        len(data.train),
        recipe.batch_size,
        recipe.epochs,
        recipe.warmup_fraction,
        ready.place.spec.seed,
    )
    return TrainingPlan(
        images=images,
        steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        images_per_step=recipe.batch_size,
        forwards_per_step=1.0 + 2.0 * _learned_part(ready, recipe),
        compares_first=isinstance(recipe, FinetuneRecipe) and not isinstance(recipe, AutoRecipe),
        compared_images=len(data.held_out),
        judged_images=sum(map(len, ready.judged().values())),
    )


def _kind_of_speed(ready: Ready) -> dict[str, Any]:
    """Return what must be equal for a job's rates to tell about another one's, JSON-ready."""
    recipe = ready.recipe
    return {
        "architecture": ready.place.spec.architecture,
        "numerics": ready.numerics,
        "crop_px": ready.backbone.preprocessing.crop_px,
        "learned_part": 0.0 if isinstance(recipe, HeadRecipe) else _learned_part(ready, recipe),
        "augmentation": None if isinstance(recipe, HeadRecipe) else recipe.augmentation,
    }


def _learned_part(ready: Ready, recipe: FinetuneRecipe | ScratchRecipe) -> float:
    """Return the part of the backbone's stages that learns, 0 to 1."""
    stages = len(parameter_groups_in_depth_order(ready.backbone.module))
    return min(recipe.tune, stages) / stages if isinstance(recipe, FinetuneRecipe) else 1.0


def _configuration(ready: Ready) -> str:
    """Return the hash of what a checkpoint must have in common with an attempt to be its own."""
    spec, weights = ready.place.spec, ready.backbone.weights
    parts = {
        "dataset": ready.data.dataset.manifest.digest,
        "architecture": spec.architecture,
        "weights": None if weights is None else weights["sha256"],
        "preprocessing": ready.backbone.preprocessing.digest,
        "recipe": as_json(ready.recipe),
        "seed": spec.seed,
        "numerics": ready.numerics,
    }
    return sha256_of_bytes(canonical_json(parts))


def _matching(checkpoint: Checkpoint | None, ready: Ready) -> Checkpoint | None:
    if checkpoint is None or isinstance(ready.recipe, HeadRecipe):
        return None
    if checkpoint.facts.get("config") == _configuration(ready):
        ready.place.progress.log(f"going on from the checkpoint of step {checkpoint.step}")
        return checkpoint
    ready.place.interruption.has_model = False
    ready.place.checkpoints.clear()  # by their steps they would pass for the newer ones
    ready.place.progress.warning(
        "checkpoint-ignored", "the checkpoint is of another configuration; starting again"
    )
    return None


def frozen_features(ready: Ready) -> Tensor:
    """Phase `features`: float32 `[N, D]` of all images, from the cache if they are there."""
    ready.place.begin("features")
    dataset, batch_size = ready.data.dataset, ready.recipe.batch_size
    return features_of_view(ready.place, ready.backbone, dataset, batch_size, ready.frozen)


def _views(recipe: Recipe) -> list[str]:
    """Return what the head of a recipe learns from of each image; the centre first."""
    if isinstance(recipe, HeadRecipe):
        return view_names(recipe.views, recipe.view_policy)
    return view_names(1)


def _further_views(ready: Ready) -> list[Tensor]:
    """Return the features of all images in the views behind the first, float32 `[N, D]` each."""
    dataset, batch_size = ready.data.dataset, ready.recipe.batch_size
    return [
        features_of_view(ready.place, ready.backbone, dataset, batch_size, ready.frozen, view)
        for view in _views(ready.recipe)[1:]
    ]


def _fit(ready: Ready, features: Tensor) -> HeadFit:
    """Phase `head`: the linear classifier, its penalty by cross-validation."""
    data, recipe = ready.data, ready.recipe
    shown = torch.stack([features, *_further_views(ready)])  # [V, N, D]
    ready.place.begin("head")
    if isinstance(recipe, FinetuneRecipe):
        recipe = HeadRecipe(
            folds=recipe.head_folds,
            max_iterations=recipe.head_max_iterations,
            class_weights=recipe.class_weights,
        )
    assert isinstance(recipe, HeadRecipe)
    train = torch.from_numpy(data.train)
    place = ready.place

    def poll(done: int, total: int) -> bool:
        place.interruption.has_model = done > 0
        place.advance("penalties", done, total)
        return place.interruption.out_of_time

    fit = fit_head(
        shown[:, train].to(ready.place.device),
        ready.labels[train],
        data.dataset.contents(data.train),
        len(ready.task.classes),
        recipe,
        poll,
    )
    if place.interruption.out_of_time:
        place.progress.warning(
            "time-limit-reached", "the search for the penalty may have ended early"
        )
    doctor.examine(ready, features, fit)
    return fit


def _cross_validated(ready: Ready, fit: HeadFit) -> dict[str, float]:
    metrics = ready.task.metrics(fit.out_of_fold_logits, ready.targets(ready.data.train))
    return {**{f"cv/{name}": value for name, value in metrics.items()}, "head/l2": fit.l2}


def _classifier(ready: Ready, fit: HeadFit | None = None) -> Classifier:
    """Return a classifier on the attempt's backbone, with the fitted head or a zero one."""
    model = Classifier(ready.backbone.module, ready.backbone.width, len(ready.task.classes))
    if fit is not None:
        model.head.load_state_dict(fit.head.state_dict())
    model.to(ready.place.device)
    return model


def _head_only(ready: Ready, features: Tensor, fit: HeadFit) -> Trained:
    """Return the head as a model of its own: everything is measured on the cached features."""
    train = torch.from_numpy(ready.data.train)
    with torch.inference_mode():
        all_logits = fit.head(features)  # [N, C]
    fitted = ready.task.metrics(all_logits[train], ready.labels[train])
    metrics = {f"train/{name}": value for name, value in fitted.items()}
    metrics |= _cross_validated(ready, fit)
    outputs = {}
    for name, indices in ready.judged().items():
        chosen = torch.from_numpy(indices)
        outputs[name] = Outputs(features[chosen], all_logits[chosen])
    out_of_fold = Outputs(features[train], fit.out_of_fold_logits)
    model = _classifier(ready, fit).eval()
    return Trained(model, "head", outputs, metrics, out_of_fold=out_of_fold)


def _whole_network(
    ready: Ready, recipe: FinetuneRecipe | ScratchRecipe, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """Recipes `finetune`, `scratch` and `auto`: return the result line."""
    place = ready.place
    state, first = _first_state(ready, recipe, checkpoint)
    place.interruption.has_model = isinstance(recipe, FinetuneRecipe) or state.compared_step > 0
    save = _saver(ready, first)
    if checkpoint is None:
        save(state)
        faults.reach("train.after_head")
    place.begin("train")
    around = Surroundings(
        place.spec.seed, place.training_dtype, place.progress, place.interruption, save,
        place.spec.checkpoint_steps, place.spec.data_folder / "cache" / "activations",
    )  # fmt: skip
    fine_tune(state, ready.task, ready.data, recipe, around)
    place.begin("evaluate")
    outputs = {
        name: predict_outputs(
            state.model,
            ready.data.dataset,
            indices,
            ready.data.preprocessing,
            state.at_once(recipe.batch_size),
        )
        for name, indices in ready.judged().items()
    }
    # Candidate 0 is the fitted head on the untouched backbone: it can be stored as just that.
    kind: Kind = "head" if state.best_step == 0 and ready.backbone.weights else "whole"
    facts = {"steps": state.step, "best_step": state.best_step}
    trained = Trained(state.model, kind, outputs, first.metrics, facts)
    return publish(ready, trained) if first.head is None else conclude(ready, first.head, trained)


@dataclass(frozen=True)
class _First:
    """What was found before the network learned; checkpoints keep it.

    Args:
        metrics: Figures of the head phase.
        head: With recipe `auto`: the head as it was published.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    head: Published | None = None


def _saver(ready: Ready, first: _First) -> Callable[[TrainingState], None]:
    """Return what writes a checkpoint of a state durably and reports it."""
    place, configuration = ready.place, _configuration(ready)

    def save(state: TrainingState) -> None:
        facts = {
            **state.facts(),
            "config": configuration,
            "recipe": as_json(ready.recipe),
            "threads": place.numerics.threads,
            "seed": place.spec.seed,
            "elapsed_seconds": place.interruption.elapsed_seconds,
            "first": asdict(first),
        }
        place.checkpoints.save(state.tensors(), facts)
        place.progress.checkpoint(state.step)

    return save


def _first_state(
    ready: Ready, recipe: FinetuneRecipe | ScratchRecipe, checkpoint: Checkpoint | None
) -> tuple[TrainingState, _First]:
    """Return the state to train from, and what is known before it."""
    first, fit = _First(), None
    if checkpoint is None and isinstance(recipe, FinetuneRecipe):
        features = frozen_features(ready)
        fit = _fit(ready, features)
        head = None
        if isinstance(recipe, AutoRecipe):
            head = publish_head(ready, _head_only(ready, features, fit))
        first = _First(_cross_validated(ready, fit), head)
    model = _classifier(ready, fit)
    optimizer = build_optimizer(model, recipe)  # settles what learns
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    scale = LossScale.needed_for(ready.place.training_dtype)
    state = TrainingState(model, optimizer, average, scale)
    if checkpoint is not None:
        state.restore(checkpoint.tensors(), checkpoint.facts)
        ready.place.interruption.resume_after(float(checkpoint.facts["elapsed_seconds"]))
        first = _First(**checkpoint.facts["first"])
        if first.head is not None:
            repeat_head(ready, first.head)
    return state, first
