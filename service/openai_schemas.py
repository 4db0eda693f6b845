"""Bodies of the calls in OpenAI's shapes: wire format only. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.schemas import MetadataKey, MetadataValue, Request, WebhookBody, WebhookRequest
from service.services import MODEL_NAME_PATTERN

MAX_PARTS = 10_000
FINE_TUNE = "fine-tune"  # the one purpose of a file here
Hyperparameters = Annotated[
    dict[str, Any],
    Field(description="`n_epochs`, `batch_size`, `learning_rate_multiplier`, or the recipe's own."),
]


class SupervisedMethod(Request):
    """How a supervised job learns."""

    hyperparameters: Hyperparameters = Field(default_factory=dict)


class Method(Request):
    """How a job learns; only from labels."""

    type: Literal["supervised"]
    supervised: SupervisedMethod = Field(default_factory=SupervisedMethod)


class FineTuningRequest(Request):
    """`POST /v1/fine_tuning/jobs`."""

    training_file: str = Field(min_length=1, max_length=64, description="Id of a file, `ds_...`.")
    model: str = Field(min_length=1, max_length=64, description="A backbone's architecture.")
    suffix: str | None = Field(
        None, pattern=MODEL_NAME_PATTERN, description="Name of the model; default: the file's."
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="As those of `method`.")
    recipe: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Not in OpenAI's API. Default: `head` if it takes all hyperparameters, else "
        "`finetune`.",
    )
    validation_file: str | None = Field(None, description="Not offered: a split of the archive.")
    integrations: list[Any] | None = Field(None, max_length=0, description="Not offered.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    webhook: WebhookRequest | None = Field(
        None, description="Not in OpenAI's API: told about the job's end."
    )


class UploadRequest(Request):
    """`POST /v1/uploads`."""

    filename: str = Field(min_length=1, max_length=255)
    bytes: int = Field(ge=1, le=2**53)
    mime_type: str = Field("", max_length=255, description="Not used: the content decides.")
    purpose: Literal["fine-tune"]


class CompleteRequest(Request):
    """`POST /v1/uploads/{upload_id}/complete`."""

    part_ids: list[str] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(None, pattern=r"^[0-9a-fA-F]{32}$")


class FileObject(BaseModel):
    """A data set, as a file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class PartObject(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class UploadObject(BaseModel):
    """An upload in parts; `parts` (sizes in bytes by id) is not in OpenAI's API."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["pending", "completed", "cancelled"]
    file: FileObject | None
    parts: dict[str, int]


class JobErrorObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class FineTuningJobObject(BaseModel):
    """A fine-tuning job; `recipe` and `webhook` are not in OpenAI's API."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: str
    error: JobErrorObject | None
    model: str
    fine_tuned_model: str | None
    training_file: str
    validation_file: None = None
    result_files: list[str] = []
    organization_id: str = "graft"
    seed: int
    trained_tokens: None = None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    integrations: list[Any] = []
    metadata: dict[str, str]
    recipe: str
    webhook: WebhookBody | None = None


class EventObject(BaseModel):
    """One row of a job's log."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]


class CheckpointObject(BaseModel):
    """A version that a job published: it can be predicted with."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]
