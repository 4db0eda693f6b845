"""Errors of feedback: what people say of images that a model answered.

* FeedbackError                  it cannot be kept or used
  + FeedbackNotFound, FeedbackUsed, FeedbackMissing, DatasetUnknown, RetrainImpossible
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class FeedbackError(GraftError):
    """What people say of images cannot be kept or used."""

    code = "feedback-error"


@leaf
class FeedbackNotFound(FeedbackError):
    """No such feedback."""

    code = "feedback-not-found"
    sentence = "there is no feedback {feedback_id}; GET /v1/models/<name>/feedback lists it"
    feedback_id: str


@leaf
class FeedbackUsed(FeedbackError):
    """A version of a data set has the image with its label."""

    code = "feedback-used"
    sentence = "feedback {feedback_id} is part of data set {dataset_id}: send another for the image"
    feedback_id: str
    dataset_id: str


@leaf
class FeedbackMissing(FeedbackError):
    """There is nothing to make a version of a data set of."""

    code = "feedback-missing"
    sentence = "model {name!r} has no feedback that is not in a data set yet"
    name: str


@leaf
class DatasetUnknown(FeedbackError):
    """Nothing says what a model learned from."""

    code = "dataset-unknown"
    sentence = (
        "model {name!r} version {version} was imported without a data set: "
        "upload the images as a data set of their own"
    )
    name: str
    version: int


@leaf
class RetrainImpossible(FeedbackError):
    """Nothing says how a model was trained."""

    code = "retrain-impossible"
    sentence = (
        "the job that made model {name!r} version {version} is gone: apply the feedback with "
        "`retrain` false, then POST /v1/jobs on the new data set"
    )
    name: str
    version: int
