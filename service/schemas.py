"""Bodies of requests and answers: wire format only. Unknown fields are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.webhooks.signing import key_of
from service.services import REFERENCE_PATTERN

_Item = TypeVar("_Item")


class Request(BaseModel):
    """Base of what clients send: strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class WebhookRequest(Request):
    """Who is to be told about the end of a job."""

    url: str = Field(min_length=1, max_length=2048, description="http or https.")
    secret: str | None = Field(
        None,
        max_length=100,
        description="`whsec_` and 24 to 64 bytes in base64; default: one is made and told once.",
    )

    @field_validator("secret")
    @classmethod
    def _signs(cls, value: str | None) -> str | None:
        if value is not None:
            key_of(value)
        return value


class JobRequest(Request):
    """`POST /v1/jobs`."""

    type: Literal["fine_tune", "race", "evaluate", "batch_predict", "export"] = "fine_tune"
    dataset: str = Field(min_length=1, max_length=64, description="Id of a data set, `ds_...`.")
    backbone: str = Field("mobilenet_v2", min_length=1, max_length=64)
    weights: str = Field("DEFAULT", min_length=1, max_length=64)
    recipe: str = Field("head", min_length=1, max_length=64)
    parameters: dict[str, Any] = Field(default_factory=dict, description="Overrides of the recipe.")
    model: str | None = Field(
        None,
        pattern=REFERENCE_PATTERN,
        description="Default: from the data set's name. Only `evaluate` and `batch_predict` take "
        "`name@version`.",
    )
    promote: bool = Field(True, description="Whether the new version becomes alias `default`.")
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first.")
    time_limit_seconds: float | None = Field(None, gt=0, le=30 * 86400)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    block_on: Literal["never", "error", "warning"] = Field(
        "never", description="Severity of findings about the data that ends the job."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    webhook: WebhookRequest | None = Field(None, description="Told about the job's end.")


class RetryRequest(Request):
    """`POST /v1/jobs/{job_id}/retry`."""

    reproduce: bool = Field(
        False, description="Repeat to the bit what the job's receipt says, or fail and say why not."
    )


class DownloadRequest(Request):
    """`POST /v1/backbones/{architecture}/download`."""

    weights: str = Field("DEFAULT", min_length=1, max_length=64)


class AliasRequest(Request):
    """`PUT /v1/models/{name}/aliases/{alias}`."""

    version: int = Field(ge=1, le=2**31 - 1)
    if_current: int | None = Field(None, ge=1, le=2**31 - 1)


class PredictInput(Request):
    """One image of a JSON prediction request."""

    b64: str = Field(min_length=1, description="The encoded image in base64.")


class PredictRequest(Request):
    """The JSON form of `POST /v1/models/{name}/predict`."""

    inputs: list[PredictInput] = Field(min_length=1, max_length=32)


class FeedbackInput(Request):
    """One image of a feedback request with what it shows."""

    b64: str = Field(min_length=1, description="The encoded image in base64.")
    label: str | None = Field(None, min_length=1, max_length=255)
    labels: list[str] | None = Field(None, max_length=1000)


class FeedbackRequest(Request):
    """The JSON form of `POST /v1/models/{name}/feedback`."""

    inputs: list[FeedbackInput] = Field(min_length=1, max_length=32)


class ExportRequest(Request):
    """`POST /v1/models/{name}/versions/{version}/exports`."""

    format: Literal["onnx", "torch_export"]


class ApplyFeedbackRequest(Request):
    """`POST /v1/models/{name}/feedback/apply`."""

    retrain: bool = Field(
        True, description="Also queue a job like the one that made the model, on the new data."
    )


class Page(BaseModel, Generic[_Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[_Item]
    has_more: bool
    next: str | None

    @classmethod
    def of(cls, items: list[_Item], limit: int, key: str = "id") -> Page[_Item]:
        """Make a page of up to `limit + 1` items: the one too many tells that there is more."""
        shown = items[:limit]
        more = len(items) > limit
        return cls(data=shown, has_more=more, next=getattr(shown[-1], key) if more else None)


class DatasetBody(BaseModel):
    """A data set."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    version: int
    parent: str | None
    status: str = Field(description="processing, ready or rejected.")
    task: str | None
    classes: list[str]
    splits: dict[str, Any]
    digest: str | None
    bytes: int
    problem: dict[str, Any] | None
    created_at: datetime


class WebhookBody(BaseModel):
    """Who is told about the end of a job."""

    url: str
    secret: str | None = Field(None, description="Told once, where the service made it.")


class JobBody(BaseModel):
    """A job."""

    id: str
    object: Literal["job"] = "job"
    type: str
    status: str
    phase: str | None
    queue_position: int | None
    progress: dict[str, Any] | None
    spec: dict[str, Any]
    resolved: dict[str, Any] | None
    metrics: dict[str, float]
    resources: dict[str, Any]
    attempt: int
    retry_of: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    metadata: dict[str, str]
    webhook: WebhookBody | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class DeliveryAttemptBody(BaseModel):
    """One attempt to deliver a message."""

    number: int
    at: datetime
    response_status: int | None
    error: str | None = Field(
        description="http-status, no-answer, tls-failed, forbidden-address, gone; unknown: it is "
        "under way, or its sender died and it may have been received."
    )


class DeliveryBody(BaseModel):
    """A message about a job and how far it is."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    event: str
    status: str = Field(description="pending, delivered, failed, blocked or gone.")
    attempts: list[DeliveryAttemptBody]
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None


class EventBody(BaseModel):
    """One row of a job's log."""

    seq: int
    kind: str
    data: dict[str, Any]
    at: datetime


class VersionBody(BaseModel):
    """One immutable version of a model."""

    model: str
    version: int
    object: Literal["model.version"] = "model.version"
    digest: str
    task: str
    architecture: str
    classes: list[str]
    metrics: dict[str, float]
    files: dict[str, Any]
    job: str | None
    dataset: str | None
    aliases: list[str]
    created_at: datetime


class ModelBody(BaseModel):
    """A model; `id`, `object`, `created` and `owned_by` let OpenAI clients list it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    name: str
    versions: list[int]
    aliases: dict[str, int]
    default: VersionBody | None
    created_at: datetime


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: str
    deleted: Literal[True] = True


class AliasBody(BaseModel):
    """Where an alias points."""

    model: str
    alias: str
    version: int


class ComparisonBody(BaseModel):
    """How a candidate answered what another version was asked."""

    version: int = Field(description="That answered.")
    shadow: int = Field(description="The candidate.")
    compared: int = Field(description="Images that both answered.")
    agreed: int
    agreement: float | None
    mean_difference: float | None = Field(description="Of the score of the label answered.")
    largest_difference: float
    failed: int = Field(description="Images that the candidate gave no answer to.")
    since: datetime
    until: datetime


class ShadowBody(BaseModel):
    """What is known of a model's candidates."""

    model: str
    version: int | None = Field(description="Where alias `shadow` points.")
    share: float
    comparisons: list[ComparisonBody]


class FeedbackBody(BaseModel):
    """One image of which somebody said what it shows."""

    id: str
    object: Literal["feedback"] = "feedback"
    model: str
    version: int
    image_sha256: str
    labels: list[str]
    predicted: dict[str, Any] = Field(description="What the version said of it.")
    agreed: bool
    dataset: str | None = Field(description="The version of a data set that has it.")
    created_at: datetime


class ApplyFeedbackBody(BaseModel):
    """What feedback became."""

    dataset: str
    job: str | None
    images: int


class ExportBody(BaseModel):
    """A version as a graph in a zip: made by the job of the same id."""

    id: str
    object: Literal["model.export"] = "model.export"
    model: str
    version: int
    format: str
    status: str
    phase: str | None
    file: dict[str, Any] | None = Field(description="`sha256` and `size` once it has succeeded.")
    checked: dict[str, Any] | None = Field(
        description="Largest differences to served probabilities, and of how many images."
    )
    error: dict[str, Any] | None
    created_at: datetime
    finished_at: datetime | None


class FileBody(BaseModel):
    """A file of a job."""

    name: str
    size: int
