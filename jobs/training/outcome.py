"""What an attempt settles before it learns, what it has afterwards, and how that is published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.manifest import TEST
from jobs.evaluation.card import DataSummary, model_card
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.judged_labels import Thresholds, label_basis
from jobs.evaluation.plots import plots
from jobs.recipes import Recipe, as_json
from jobs.tasks.kinds import ImageTask
from jobs.tasks.multilabel import Multilabel
from jobs.training.evaluate import Outputs
from jobs.training.frozen import FrozenPass, wanted_engine
from jobs.training.judging import judged_images
from jobs.training.loop import TrainingData
from jobs.training.place import Place
from jobs.training.sources import SEEN, Backbone
from models_cache.artifacts import (
    CARD_FILE,
    EVALUATION_FILE,
    FAMILIARITY_FILE,
    PLOT_FILES,
    ArtifactFacts,
    Kind,
    tensor_bytes,
    write_artifact,
)
from models_cache.backbones import Classifier
from models_cache.calibration import Calibration
from models_cache.classifiers import golden_outputs, tensors_to_publish
from models_cache.durable import canonical_json
from models_cache.novelty import Familiarity

TRAIN_FOLDS = "train-folds"  # the split's name where training images are judged out of fold


@dataclass(frozen=True)
class Ready:
    """Everything that is fixed before the first image is learned from."""

    place: Place
    backbone: Backbone
    data: TrainingData
    task: ImageTask
    recipe: Recipe
    frozen: FrozenPass

    @property
    def labels(self) -> Tensor:
        """Class index of every image, int64 `[N]`; with several labels float32 `[N, C]`."""
        return self.data.dataset.labels

    def targets(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the labels of some images, int64 `[B]` or float32 `[B, C]`."""
        return self.labels[torch.from_numpy(indices)]

    @property
    def numerics(self) -> dict[str, Any]:
        """What decides the last bits of the result, JSON-ready."""
        batch = self.recipe.batch_size
        return {**self.place.numerics.as_json(), "engine": self.frozen.engine_name, "batch": batch}

    def judged(self) -> dict[str, NDArray[np.int64]]:
        """Return the images that the model is judged on, by split; the last is reported."""
        data = self.data
        splits = {data.held_out_name: data.held_out, TEST: data.dataset.indices(TEST)}
        return {name: indices for name, indices in splits.items() if len(indices)}


@dataclass(frozen=True)
class Trained:
    """A classifier and what was measured of it.

    Args:
        model: In eval mode.
        kind: What must be stored of it.
        outputs: What it says of the images it is judged by, by split; the last is reported.
        metrics: Figures by name.
        facts: How it came about, for the lineage.
        out_of_fold: What models that did not learn from an image say of it, for each training
            image; only where cross-validation made them.
    """

    model: Classifier
    kind: Kind
    outputs: dict[str, Outputs]
    metrics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    out_of_fold: Outputs | None = None


def publish(ready: Ready, trained: Trained) -> dict[str, Any]:
    """Phase `publish`: evaluation, model card and artifact become blobs; return the result line."""
    place, spec = ready.place, ready.place.spec
    place.begin("publish")
    reported, known = _judged(ready, trained)
    verdict = _verdict(ready.task, reported, known)
    metrics = _metrics(ready, trained, verdict.evaluation)
    recipe = {"name": spec.recipe, "parameters": as_json(ready.recipe)}
    facts = ArtifactFacts(
        task=ready.task.name,
        architecture=spec.architecture,
        kind=trained.kind,
        weights=ready.backbone.weights,
        preprocessing=ready.backbone.preprocessing,
        classes=ready.task.classes,
        feature_width=ready.backbone.width,
        metrics=metrics,
        lineage={**spec.lineage, "recipe": recipe, "seed": spec.seed, **trained.facts},
        numerics=ready.numerics,
        calibration=verdict.calibration,
        thresholds=verdict.thresholds,
    )
    golden = golden_outputs(trained.model.eval(), ready.backbone.preprocessing)
    tensors = tensors_to_publish(trained.model, trained.kind)
    documents = {
        EVALUATION_FILE: canonical_json(verdict.evaluation),
        **verdict.plots,
    }
    drawn = [name for name in PLOT_FILES if name in documents]
    card = model_card(facts, verdict.evaluation, _summary(ready), drawn)
    documents[CARD_FILE] = card.encode()
    if verdict.familiarity is not None:
        documents[FAMILIARITY_FILE] = tensor_bytes(verdict.familiarity.arrays())
    artifact = write_artifact(place.blobs, facts, tensors, golden, documents)
    return {
        "artifact": {"digest": artifact.digest, "files": artifact.files_as_json()},
        "metrics": metrics,
        "evaluation_sha256": artifact.files[EVALUATION_FILE].sha256,
        "next_engine": wanted_engine(
            place, spec.architecture, ready.backbone.weights, ready.backbone.preprocessing
        ),
    }


def _summary(ready: Ready) -> DataSummary:
    """Return how many images of each class the splits have."""
    manifest = ready.data.dataset.manifest
    images: dict[str, Counter[str]] = {}
    for entry in manifest.images:
        counts = images.setdefault(entry.split, Counter())
        counts.update(manifest.classes[label] for label in entry.labels)
    return DataSummary(manifest.digest, images)


def _metrics(ready: Ready, trained: Trained, evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the figures of the version: the training's, and those of each split."""
    metrics = dict(trained.metrics)
    judged = ready.judged()
    for name, outputs in trained.outputs.items():
        measured = ready.task.metrics(outputs.logits, ready.targets(judged[name]))
        metrics |= {f"{name}/{figure}": value for figure, value in measured.items()}
    prefix = {TRAIN_FOLDS: "cv"}.get(evaluation["split"], evaluation["split"])
    metrics[f"{prefix}/macro_f1"] = evaluation["macro_f1"]
    metrics[f"{prefix}/ece"] = evaluation["calibration"]["after"]["ece"]
    return metrics


@dataclass(frozen=True)
class _Verdict:
    """What is known of a model's answers, and what serving needs to know of them.

    Args:
        evaluation: JSON-ready.
        plots: Of the evaluation, by file name.
        calibration: From images that were not learned from; None if there are none.
        thresholds: With several labels.
        familiarity: What known images look like; None if they are too few.
    """

    evaluation: dict[str, Any]
    plots: dict[str, bytes]
    calibration: Calibration | None
    thresholds: tuple[float, ...] | None
    familiarity: Familiarity | None


def _verdict(task: ImageTask, reported: JudgedImages, known: JudgedImages | None) -> _Verdict:
    """Judge a model by the reported images; `known` is what its answers are tuned on."""
    thresholds = None
    if isinstance(task, Multilabel):
        basis = None if known is None else label_basis(known)
        tuned = Thresholds.chosen(known or reported, None if basis is None else basis.calibration)
        evaluation, thresholds = task.evaluation(reported, basis, tuned), tuned.values
    else:
        basis = None if known is None else Basis.of(known)
        evaluation = task.evaluation(reported, basis)
    if basis is None:
        return _Verdict(evaluation, plots(evaluation, None), None, thresholds, None)
    drawn = plots(evaluation, basis.calibration)
    return _Verdict(evaluation, drawn, basis.calibration, thresholds, basis.familiarity)


def _judged(ready: Ready, trained: Trained) -> tuple[JudgedImages, JudgedImages | None]:
    """Return the images that are reported, and those that tell serving about images like them.

    Out of fold where cross-validation was made, and else the held-out images. These have chosen
    the epoch: their figures are a little too good, and so is what is fitted on them: calibration
    or thresholds. Where nothing was held out there are none.
    """
    splits, data = ready.judged(), ready.data
    judged = {n: _images(ready, n, splits[n], o) for n, o in trained.outputs.items()}
    basis = judged.get(data.held_out_name) if data.held_out_name != SEEN else None
    if trained.out_of_fold is not None:
        basis = _images(ready, TRAIN_FOLDS, data.train, trained.out_of_fold)
    reported = list(judged.values())[-1] if judged else basis
    assert reported is not None, "a head without held-out images is judged out of fold"
    return reported, basis


def _images(ready: Ready, split: str, indices: NDArray[np.int64], outputs: Outputs) -> JudgedImages:
    images = [ready.data.dataset.manifest.images[i] for i in indices]
    return judged_images(split, images, ready.targets(indices), outputs)
