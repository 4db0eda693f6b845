"""The parameters of a batch prediction, and what its job's spec says: wire format and checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from jobs.store.models import Version
from service.errors import ValidationFailed
from service.schemas import JobRequest, Request

#: Fields of a job that a batch prediction has no use for.
_FOREIGN = ("backbone", "weights", "recipe", "promote", "seed", "block_on")


class BatchParameters(Request):
    """`parameters` of a job of type `batch_predict`."""

    split: Literal["train", "val", "test"] | None = Field(
        None, description="Whose images; default: all."
    )
    top_k: int | None = Field(
        None, ge=1, le=10_000, description="Scores of each image; default: all."
    )
    max_error: float | None = Field(
        None, gt=0, lt=1, description="Abstain rather than be wrong more often than this."
    )


def batch_reference(body: JobRequest) -> str:
    """Return which model is asked, with everything checked that can be without the database.

    Raises:
        ValidationFailed: No model is named, a parameter is unknown or out of bounds, or a field
            belongs to other jobs.
    """
    for name in _FOREIGN:
        if name in body.model_fields_set:
            message = "a batch prediction has no use for this field"
            raise ValidationFailed.one(f"/{name}", "not-of-a-batch", message)
    if body.model is None:
        raise ValidationFailed.one("/model", "missing", "name the model: `name` or `name@version`")
    batch_parameters(body)
    return body.model


def batch_parameters(body: JobRequest) -> BatchParameters:
    """Return the parameters of a batch prediction.

    Raises:
        ValidationFailed: One is unknown or out of bounds.
    """
    try:
        return BatchParameters.model_validate(body.parameters)
    except ValidationError as error:
        faults = [
            {**fault, "loc": ("parameters", *fault["loc"][:1])}
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ValidationFailed.of(faults) from None


def batch_spec(body: JobRequest, version: Version) -> dict[str, Any]:
    """Return the spec of a batch prediction by one version: all of its file is from that one."""
    spec = body.model_dump(mode="json", exclude={*_FOREIGN, "webhook", "priority"})
    return {
        **spec,
        "parameters": batch_parameters(body).model_dump(mode="json"),
        "model": version.name,
        "version": version.version,
        "artifact": version.artifact_digest,
        "backbone": version.architecture,
    }
