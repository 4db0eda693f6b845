"""Which task a dataset asks for."""

from __future__ import annotations

from jobs.datasets.manifest import Manifest
from jobs.tasks.classification import Classification
from jobs.tasks.multilabel import Multilabel
from models_cache.artifacts import MULTILABEL

ImageTask = Classification | Multilabel


def task_of(manifest: Manifest) -> ImageTask:
    """Return the task of a dataset: one label for each image, or any number of them."""
    kind = Multilabel if manifest.task == MULTILABEL else Classification
    return kind(manifest.classes)
