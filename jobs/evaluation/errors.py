"""Errors of evaluating a version on a data set.

* EvaluationError                the data set says nothing about the model
  + SplitEmpty, TaskMismatch, ClassesUnknown
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class EvaluationError(GraftError):
    """A data set says nothing about a model."""

    code = "evaluation-error"


@leaf
class SplitEmpty(EvaluationError):
    """The data set has no image in the split that was asked for."""

    code = "split-empty"
    sentence = (
        "the data set has no image in split {split!r}, it has {there}: leave `split` out, or "
        "upload such images"
    )
    split: str
    there: str


@leaf
class TaskMismatch(EvaluationError):
    """One has one label per image, and the other any number."""

    code = "task-mismatch"
    sentence = (
        "the model does {model_task}, the labels of the data set are for {dataset_task}: take a "
        "model or labels of the other kind"
    )
    model_task: str
    dataset_task: str


@leaf
class ClassesUnknown(EvaluationError):
    """None of the images has a class that the model knows."""

    code = "classes-unknown"
    sentence = (
        "none of the {images} images has a class that the model knows: it has {model_classes}, "
        "the data set {dataset_classes}; classes are matched by name, to the letter"
    )
    images: int
    model_classes: str
    dataset_classes: str
