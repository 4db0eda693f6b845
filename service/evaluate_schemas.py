"""The parameters of an evaluation, and what its job's spec says: wire format and checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.store.models import Version
from service.batch_schemas import asked_spec, checked_parameters, checked_reference
from service.schemas import JobRequest, Request


class EvaluateParameters(Request):
    """`parameters` of a job of type `evaluate`."""

    split: Literal["train", "val", "test"] | None = Field(
        None, description="Whose images; default: the first of test, val and all that has some."
    )


def evaluate_reference(body: JobRequest) -> str:
    """Return which model is judged, with everything checked that can be without the database.

    Raises:
        ValidationFailed: No model is named, a parameter is unknown or out of bounds, or a field
            belongs to other jobs.
    """
    return checked_reference(body, EvaluateParameters, "not-of-an-evaluation", "an evaluation")


def evaluate_spec(body: JobRequest, version: Version) -> dict[str, Any]:
    """Return the spec of an evaluation of one version."""
    return asked_spec(body, checked_parameters(body, EvaluateParameters), version)
