"""The parameters of a batch prediction, and what its job's spec says: wire format and checks."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from jobs.store.models import Version
from service.errors import ValidationFailed
from service.schemas import JobRequest, Request

#: Fields of a job that one which trains nothing has no use for.
_FOREIGN = ("backbone", "weights", "recipe", "promote", "seed", "block_on")

_Parameters = TypeVar("_Parameters", bound=Request)


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
    return checked_reference(body, BatchParameters, "not-of-a-batch", "a batch prediction")


def batch_spec(body: JobRequest, version: Version) -> dict[str, Any]:
    """Return the spec of a batch prediction by one version: all of its file is from that one."""
    return asked_spec(body, checked_parameters(body, BatchParameters), version)


def checked_reference(body: JobRequest, parameters: type[Request], code: str, job: str) -> str:
    """Return which model a job asks that trains none; what can be is checked without the database.

    Args:
        body: The request.
        parameters: Of jobs of its type.
        code: Of the fault that a field belongs to other jobs.
        job: What it is, in words.

    Raises:
        ValidationFailed: No model is named, a parameter is unknown or out of bounds, or a field
            belongs to other jobs.
    """
    for name in _FOREIGN:
        if name in body.model_fields_set:
            raise ValidationFailed.one(f"/{name}", code, f"{job} has no use for this field")
    if body.model is None:
        raise ValidationFailed.one("/model", "missing", "name the model: `name` or `name@version`")
    checked_parameters(body, parameters)
    return body.model


def checked_parameters(body: JobRequest, parameters: type[_Parameters]) -> _Parameters:
    """Return the parameters of a job.

    Raises:
        ValidationFailed: One is unknown or out of bounds.
    """
    try:
        return parameters.model_validate(body.parameters)
    except ValidationError as error:
        faults = [
            {**fault, "loc": ("parameters", *fault["loc"][:1])}
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ValidationFailed.of(faults) from None


def asked_spec(body: JobRequest, parameters: Request, version: Version) -> dict[str, Any]:
    """Return the spec of a job that asks one version."""
    spec = body.model_dump(mode="json", exclude={*_FOREIGN, "webhook", "priority"})
    return {
        **spec,
        "parameters": parameters.model_dump(mode="json"),
        "model": version.name,
        "version": version.version,
        "artifact": version.artifact_digest,
        "backbone": version.architecture,
    }
