"""What an attempt settles before it learns, what it has afterwards, and how that is published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.manifest import TEST
from jobs.recipes import Recipe, as_json
from jobs.tasks.classification import Classification
from jobs.training.loop import TrainingData
from jobs.training.place import Place
from jobs.training.sources import Backbone
from models_cache.artifacts import ArtifactFacts, Kind, write_artifact
from models_cache.backbones import Classifier
from models_cache.classifiers import golden_outputs, tensors_to_publish
from models_cache.durable import canonical_json
from models_cache.features import Engine

TRAIN_FOLDS = "train-folds"  # the split's name where training images are judged out of fold


@dataclass(frozen=True)
class Ready:
    """Everything that is fixed before the first image is learned from."""

    place: Place
    backbone: Backbone
    data: TrainingData
    task: Classification
    recipe: Recipe
    engine: Engine

    @property
    def labels(self) -> Tensor:
        """Class index of every image, int64 `[N]`."""
        return self.data.dataset.labels

    def targets(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the class indices of some images, int64 `[B]`."""
        return self.labels[torch.from_numpy(indices)]

    @property
    def numerics(self) -> dict[str, Any]:
        """What decides the last bits of the result, JSON-ready."""
        batch = self.recipe.batch_size
        return {**self.place.numerics.as_json(), "engine": self.engine.name, "batch": batch}

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
        logits: float32 `[C]` by position of the image, for those that are held out.
        metrics: Figures by name.
        facts: How it came about, for the lineage.
    """

    model: Classifier
    kind: Kind
    logits: dict[str, Tensor]
    metrics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


def publish(ready: Ready, trained: Trained) -> dict[str, Any]:
    """Phase `publish`: evaluation and artifact become blobs; return the result line."""
    place, data, spec = ready.place, ready.data, ready.place.spec
    place.begin("publish")
    judged = {**ready.judged(), TRAIN_FOLDS: data.train}
    metrics = dict(trained.metrics)
    for name, logits in trained.logits.items():
        measured = ready.task.metrics(logits, ready.targets(judged[name]))
        prefix = {TRAIN_FOLDS: "cv"}.get(name, name)
        metrics |= {f"{prefix}/{figure}": value for figure, value in measured.items()}
    split, logits = list(trained.logits.items())[-1]
    images = [data.dataset.manifest.images[i].id for i in judged[split]]
    evaluation = ready.task.evaluation(logits, ready.targets(judged[split]), images, split)
    recipe = {"name": spec.recipe, "parameters": as_json(ready.recipe)}
    facts = ArtifactFacts(
        task="classification",
        architecture=spec.architecture,
        kind=trained.kind,
        weights=ready.backbone.weights,
        preprocessing=ready.backbone.preprocessing,
        classes=ready.task.classes,
        feature_width=ready.backbone.width,
        metrics=metrics,
        lineage={**spec.lineage, "recipe": recipe, "seed": spec.seed, **trained.facts},
        numerics=ready.numerics,
    )
    golden = golden_outputs(trained.model.eval(), ready.backbone.preprocessing)
    tensors = tensors_to_publish(trained.model, trained.kind)
    artifact = write_artifact(place.blobs, facts, tensors, golden)
    return {
        "artifact": {"digest": artifact.digest, "files": artifact.files_as_json()},
        "metrics": metrics,
        "evaluation_sha256": place.blobs.put_bytes(canonical_json(evaluation)).sha256,
    }
