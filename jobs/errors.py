"""Errors of datasets, recipes and jobs; the root and the leaf form are in `models_cache.errors`.

* DatasetError                   an upload cannot become a dataset; leaves: `jobs.datasets.errors`
* RecipeError                    parameters cannot become a recipe
* TrainingError                  an attempt cannot give a model
* JobError                       a job cannot do what was asked
* ModelError                     a model, version or alias cannot be had or changed
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class DatasetError(GraftError):
    """An upload cannot become a dataset, or a dataset cannot be used."""

    code = "invalid-dataset"


class RecipeError(GraftError):
    """Parameters cannot become a recipe."""

    code = "recipe-error"


class TrainingError(GraftError):
    """An attempt cannot give a model, and another attempt would not either."""

    code = "training-error"


class JobError(GraftError):
    """A job cannot do what was asked."""

    code = "job-error"


class ModelError(GraftError):
    """A model, version or alias cannot be had or changed."""

    code = "model-error"


@leaf
class RecipeInvalid(RecipeError):
    """A parameter of a recipe is unknown or out of bounds."""

    code = "recipe-invalid"
    sentence = "parameter {parameter!r} of recipe {recipe!r}: {reason}"
    recipe: str
    parameter: str
    reason: str


@leaf
class Diverged(TrainingError):
    """The loss became NaN or infinite."""

    code = "diverged"
    sentence = "the loss became {value} at step {step}; lower the learning rate"
    step: int
    value: str


@leaf
class DatasetUnlabelled(DatasetError):
    """Nothing can be learned from images without labels."""

    code = "dataset-unlabelled"
    sentence = (
        "the {images} images were uploaded with `labels=none`: a model can predict them (a job of "
        "type batch_predict); to learn from them or judge a model by them, upload them with labels"
    )
    images: int


@leaf
class IllegalTransition(JobError):
    """A job cannot do that in its state."""

    code = "invalid-state"
    sentence = "job {job_id} is {state}: it cannot {event}"
    job_id: str
    state: str
    event: str


@leaf
class JobNotFound(JobError):
    """No such job."""

    code = "job-not-found"
    sentence = "there is no job {job_id}; GET /v1/jobs lists them"
    job_id: str


@leaf
class DeliveryNotFound(JobError):
    """No such message about the job."""

    code = "delivery-not-found"
    sentence = (
        "job {job_id} has no message {delivery_id}; "
        "GET /v1/jobs/{job_id}/webhook/deliveries lists them"
    )
    job_id: str
    delivery_id: str


@leaf
class JobNotEnded(JobError):
    """Only an ended job can be deleted or retried."""

    code = "job-not-ended"
    sentence = "job {job_id} is {state}: cancel it first, or wait for its end"
    job_id: str
    state: str


@leaf
class RetryExists(JobError):
    """A job is retried once: as it was asked for, or to the bit."""

    code = "retry-exists"
    sentence = "job {job_id} was retried already, as {retry_id}, with `reproduce` {reproduce}"
    job_id: str
    retry_id: str
    reproduce: str


@leaf
class ReceiptMissing(JobError):
    """Only a fine-tuning job that got as far as its receipt can be reproduced."""

    code = "receipt-missing"
    sentence = (
        "job {job_id} has no receipt of a fine-tuning to reproduce; retry it without `reproduce`"
    )
    job_id: str


@leaf
class LeaseLost(JobError):
    """The worker's right to a job has ended; nothing it writes counts any more."""

    code = "lease-lost"
    sentence = "job {job_id} is no longer held by this worker"
    job_id: str


@leaf
class AttemptsExhausted(JobError):
    """Too many attempts died in a row without getting further."""

    code = "attempts-exhausted"
    sentence = (
        "{attempts} attempts in a row ended without a new checkpoint, the last one by {reason}; "
        "the log of the job's files says more"
    )
    attempts: int
    reason: str


@leaf
class DatasetNotFound(DatasetError):
    """No such dataset."""

    code = "dataset-not-found"
    sentence = "there is no dataset {dataset_id}; GET /v1/datasets lists them"
    dataset_id: str


@leaf
class DatasetRejected(DatasetError):
    """A dataset that was found unusable cannot be trained on."""

    code = "dataset-rejected"
    sentence = "dataset {dataset_id} was rejected; its problem and its report say why"
    dataset_id: str


@leaf
class DatasetFilesMissing(DatasetError):
    """Files of a dataset are gone from the data folder."""

    code = "dataset-files-missing"
    sentence = (
        "{files} files of dataset {dataset_id} are gone, the first is {first}; "
        "restore a backup that has them, or upload the images again"
    )
    dataset_id: str
    files: int
    first: str


@leaf
class DatasetNotReady(DatasetError):
    """A dataset whose images are still being checked."""

    code = "dataset-not-ready"
    sentence = "dataset {dataset_id} is still {status}; wait until it is ready"
    dataset_id: str
    status: str


@leaf
class DataBlocked(DatasetError):
    """A dataset has findings of a severity that a job was told to stop at."""

    code = "data-blocked"
    sentence = (
        "dataset {dataset_id} has {count} findings that block_on {block_on!r} stops at: "
        "{findings}; GET /v1/datasets/{dataset_id}/report names the images: correct them and "
        "upload again, or submit with block_on 'never'"
    )
    dataset_id: str
    block_on: str
    count: int
    findings: str


@leaf
class DatasetInUse(DatasetError):
    """A dataset that a job works on cannot be deleted."""

    code = "dataset-in-use"
    sentence = "dataset {dataset_id} is used by {count} jobs ({jobs}); cancel them or wait"
    dataset_id: str
    count: int
    jobs: str


@leaf
class DatasetImageNotFound(DatasetError):
    """No such image in the dataset."""

    code = "image-not-found"
    sentence = "dataset {dataset_id} has no image {image_id}"
    dataset_id: str
    image_id: str


@leaf
class ModelNotFound(ModelError):
    """No such model."""

    code = "model-not-found"
    sentence = "there is no model {name!r}; GET /v1/models lists them"
    name: str


@leaf
class VersionNotFound(ModelError):
    """The model has no such version or alias."""

    code = "version-not-found"
    sentence = "model {name!r} has no version or alias {reference!r}"
    name: str
    reference: str


@leaf
class AliasConflict(ModelError):
    """Compare-and-set of an alias found another version."""

    code = "alias-conflict"
    sentence = "alias {alias!r} of model {name!r} points to {actual}, not to {expected}"
    name: str
    alias: str
    expected: str
    actual: str


@leaf
class AliasReserved(ModelError):
    """An alias that cannot be changed so."""

    code = "alias-reserved"
    sentence = (
        "alias {alias!r} cannot be changed so: `latest` always is the highest version, "
        "and `default` always points somewhere"
    )
    alias: str


@leaf
class VersionInUse(ModelError):
    """The version that an alias points to cannot be deleted alone."""

    code = "version-in-use"
    sentence = "version {version} of model {name!r} is what {aliases} point to; move them first"
    name: str
    version: int
    aliases: str


class IdempotencyError(GraftError):
    """An `Idempotency-Key` cannot be used for this request."""

    code = "idempotency-error"


@leaf
class IdempotencyMismatch(IdempotencyError):
    """The key was used before with another request."""

    code = "idempotency-mismatch"
    sentence = "Idempotency-Key {key!r} was used for another request; choose a new key"
    key: str


@leaf
class AttemptDied(JobError):
    """A child ended without a last line."""

    code = "attempt-died"
    sentence = "an attempt of job {job_id} ended by {reason}"
    job_id: str
    reason: str


@leaf
class AttemptStalled(JobError):
    """A child made no progress for too long."""

    code = "stalled"
    sentence = "an attempt of job {job_id} made no progress for {seconds:.0f} seconds"
    job_id: str
    seconds: float


@leaf
class NotReproducible(TrainingError):
    """What a job's receipt names is not what is there now."""

    code = "not-reproducible"
    sentence = (
        "{count} things are not as the receipt of job {job_id} says: {differences}; put them back, "
        "or retry without `reproduce`"
    )
    job_id: str
    count: int
    differences: str


@leaf
class FeaturesNotFinite(TrainingError):
    """The backbone gave features that no head can be fitted on."""

    code = "features-not-finite"
    sentence = (
        "{bad_images} of {images} images have features that are NaN or infinite; "
        "choose other weights or another backbone"
    )
    bad_images: int
    images: int


@leaf
class OutOfMemory(TrainingError):
    """The memory of the machine or of its accelerator does not hold one batch."""

    code = "out-of-memory"
    sentence = (
        "a batch of {batch_size} images does not fit into the memory of {device}; "
        "lower parameter 'batch_size' or choose a smaller backbone"
    )
    batch_size: int
    device: str


@leaf
class ImageExceedsMemory(TrainingError):
    """Not even one image at a time can be learned from."""

    code = "image-exceeds-memory"
    sentence = (
        "learning from one image at a time does not fit into the memory of {device}; choose a "
        "smaller backbone, tune fewer stages (parameter 'tune'), or use a device with more memory"
    )
    device: str


@leaf
class TimeLimitTooShort(TrainingError):
    """The time limit passed before there was a first model."""

    code = "time-limit-too-short"
    sentence = (
        "the time limit of {limit_seconds} s passed in phase {phase!r}, before there was a model; "
        "raise time_limit_seconds"
    )
    limit_seconds: float
    phase: str
