"""Which task a dataset asks for."""

from __future__ import annotations

from jobs.datasets.manifest import UNLABELLED, Manifest
from jobs.errors import DatasetUnlabelled
from jobs.tasks.classification import Classification
from jobs.tasks.multilabel import Multilabel
from models_cache.artifacts import MULTILABEL

ImageTask = Classification | Multilabel


def task_of(manifest: Manifest) -> ImageTask:
    """Return the task of a dataset: one label for each image, or any number of them.

    Raises:
        DatasetUnlabelled: Nothing can be learned from it.
    """
    if manifest.task == UNLABELLED:
        raise DatasetUnlabelled(len(manifest.images))
    kind = Multilabel if manifest.task == MULTILABEL else Classification
    return kind(manifest.classes)
