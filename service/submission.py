"""How a request becomes a job: checked completely, then one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from jobs.datasets.manifest import UNLABELLED
from jobs.errors import DatasetNotFound, DatasetRejected, DatasetUnlabelled
from jobs.evaluation.errors import SplitEmpty, TaskMismatch
from jobs.reproduction import spec_of_reproduction
from jobs.store import datasets, idempotency, jobs, models, webhooks
from jobs.store.datasets import Dataset
from jobs.store.jobs import Job
from jobs.store.models import Version
from models_cache import durable
from service import quotas
from service.batch_schemas import batch_reference, batch_spec
from service.callers import Caller
from service.errors import ValidationFailed
from service.evaluate_schemas import evaluate_reference, evaluate_spec
from service.race_schemas import race_spec
from service.receivers import checked_receiver, register, secret_to_tell
from service.recipe_schemas import check_parameters
from service.schemas import JobRequest
from service.services import Services, model_name_from, new_id


@dataclass(frozen=True)
class Accepted:
    """A job on disk, and the secret of its webhook if this very request made it."""

    job: Job
    secret: str | None


def accept(
    services: Services, caller: Caller, body: JobRequest, idempotency_key: str | None
) -> Accepted:
    """Check a request completely, then put the job and its key on disk in one transaction.

    Raises:
        ValidationFailed, RecipeError, WeightsError: Something of it is unknown or out of bounds.
        ForbiddenUrl: Its webhook leads where nothing may.
        DatasetNotFound, DatasetRejected: There is nothing to train on.
        TaskMismatch, SplitEmpty: There is nothing to evaluate on.
        IdempotencyMismatch: The key was used for another request.
    """
    fingerprint = durable.sha256_of_bytes(
        durable.canonical_json(["jobs", body.model_dump(mode="json")])
    )
    spec = _checked_spec(services, caller, body)
    secret = checked_receiver(services.settings.egress, body.webhook)
    if body.webhook is not None:
        spec = {**spec, "webhook": {"url": body.webhook.url}}

    def insert() -> str:
        job = _insert(connection, caller, body, spec)
        register(connection, job, body.webhook, secret)
        return job.id

    with services.database.write("submit") as connection:
        job_id = idempotency.once(connection, idempotency_key, fingerprint, insert, caller.project)
        job = jobs.get(connection, job_id, caller.project)
        return Accepted(job, secret_to_tell(connection, job_id, secret))


def _insert(connection: Connection, caller: Caller, body: JobRequest, spec: dict[str, Any]) -> Job:
    dataset = datasets.get(connection, body.dataset, caller.project)
    _require_usable(dataset, body.type)
    quotas.require_job(connection, caller)
    model = spec.get("model")
    if body.type == "fine_tune":
        model = body.model or model_name_from(dataset.name)
    if body.type == "evaluate":
        version = models.version(connection, spec["model"], spec["version"], caller.project)
        _require_fitting(dataset, version, spec["parameters"]["split"])
        spec = {**spec, "learned_from": _learned_from(connection, version)}
    new = jobs.NewJob(
        id=new_id("job"),
        type=body.type,
        spec={**spec, "model": model},
        priority=body.priority,
        dataset_id=dataset.id,
        model=model,
        project=caller.project,
    )
    return jobs.accept(connection, new)


def accept_retry(connection: Connection, job: Job, reproduce: bool) -> Job:
    """Insert a job that repeats an ended one, to the bit if that is asked for.

    Raises:
        ReceiptMissing: It cannot be reproduced.
        DatasetNotFound, DatasetRejected: There is nothing to train on any more.
    """
    original = {key: value for key, value in job.spec.items() if key != "reproduce"}
    new = jobs.NewJob(
        id=new_id("job"),
        type=job.type,
        spec=spec_of_reproduction(job) if reproduce else original,
        priority=job.priority,
        dataset_id=job.dataset_id,
        model=job.model,
        retry_of=job.id,
        project=job.project,
    )
    if job.dataset_id is not None:
        _require_usable(datasets.get(connection, job.dataset_id, job.project), job.type)
    again = jobs.accept(connection, new)
    webhooks.hand_on(connection, job.id, again.id)
    return again


def _require_usable(dataset: Dataset, job_type: str) -> None:
    if dataset.status == "rejected":
        raise DatasetRejected(dataset.id)
    if dataset.task == UNLABELLED and job_type != "batch_predict":
        raise DatasetUnlabelled(sum(s["images"] for s in (dataset.splits or {}).values()))


def _require_fitting(dataset: Dataset, version: Version, split: str | None) -> None:
    """Refuse what can be known to say nothing of a model; images that are still read are not."""
    if dataset.task is None or dataset.splits is None:
        return
    if dataset.task != version.task:
        raise TaskMismatch(version.task, dataset.task)
    there = {name: found["images"] for name, found in dataset.splits.items() if found["images"]}
    if split is not None and split not in there:
        raise SplitEmpty(split, ", ".join(f"{count} in {name}" for name, count in there.items()))


def _learned_from(connection: Connection, version: Version) -> str | None:
    """Return the manifest of the data set that a version was made from, if it is still there."""
    if version.dataset_id is None:
        return None
    try:
        return datasets.get(connection, version.dataset_id, version.project).manifest_sha256
    except DatasetNotFound:
        return None


def _checked_spec(services: Services, caller: Caller, body: JobRequest) -> dict[str, Any]:
    if body.type == "race":
        return race_spec(services.catalogue, services.vault, body)
    if body.type == "evaluate":
        return evaluate_spec(body, services.versions.read(evaluate_reference(body), caller.project))
    if body.type == "batch_predict":
        return batch_spec(body, services.versions.read(batch_reference(body), caller.project))
    if body.type != "fine_tune":
        offered = "exports are at POST /v1/models/{name}/versions/{version}/exports"
        raise ValidationFailed.one("/type", "not-offered", f"not offered here; {offered}")
    if body.model is not None and "@" in body.model:
        raise ValidationFailed.one("/model", "not-a-name", "a new version has no number yet")
    check_parameters(body.recipe, body.parameters)
    services.catalogue.backbone(body.backbone)
    spec = body.model_dump(mode="json", exclude={"webhook", "priority"})
    if body.recipe == "scratch":
        return {**spec, "weights": None}
    if body.weights != "DEFAULT":
        services.catalogue.candidates(body.backbone, body.weights)
    return spec
