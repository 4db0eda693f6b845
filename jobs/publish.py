"""How what an attempt offers becomes rows: one transaction each, fenced by the lease.

Execution is at least once, publication exactly once: the files are blobs already, every write
carries the lease token, and the unique key over job and artifact keeps a second try out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobs import engine_builds, lifecycle
from jobs.exports import rows as exports
from jobs.promotion import conclude, first_result
from jobs.reproduction import compare_versions
from jobs.states import JobEvent
from jobs.store import datasets, jobs, leases, models
from jobs.store.database import Database, utc_now
from jobs.store.jobs import Job, Lease
from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore

_NOT_OF_THE_RESULT = ("kind", "at", "next_engine", "resources", "metrics")
_DATASET_FACTS = ("manifest_sha256", "report_sha256", "digest", "task", "classes", "splits")


def finish(
    database: Database,
    blobs: BlobStore,
    job: Job,
    lease: Lease,
    last: dict[str, Any],
    report_sha256: str | None = None,
) -> None:
    """Write the end of a job whose child said `result`.

    Args:
        database: Where.
        blobs: Where the child put its files; they are read again and hashed.
        job: The job.
        lease: The worker's right to it.
        last: The child's last line.
        report_sha256: What a training found in the images.

    Raises:
        LeaseLost: The lease is over; nothing was written.
        BlobMissing, BlobCorrupt: A file of the result is not what it should be.
        ArtifactMalformed: The artifact does not hold what it should.
        ModelNotFound, VersionNotFound: What was exported was deleted meanwhile.
    """
    prepared = _prepare_version(blobs, job, last) if "artifact" in last else None
    if job.type == exports.TYPE:
        blobs.verify(last["file"]["sha256"])
    promotion = last.get("promotion")
    with database.write("publish") as connection:
        if promotion is not None:
            result = conclude(connection, job, prepared, promotion)
        elif prepared is not None:
            result = _publish_version(connection, job, prepared)
        elif job.type == "ingest":
            result = _publish_dataset(connection, job, last)
        elif job.type == exports.TYPE:
            result = exports.publish(connection, job, last)
        else:
            result = {key: value for key, value in last.items() if key not in _NOT_OF_THE_RESULT}
        if "reproduce" in job.spec:
            result = {**result, "reproduced": compare_versions(connection, job)}
        metrics = (promotion or last).get("metrics")
        if metrics:
            leases.record(
                connection, lease, {"metrics": metrics}, [("metrics", {"final": metrics})]
            )
        changes = {"result": result, "resources": _resources(job, last)}
        lifecycle.move(
            connection,
            job,
            JobEvent.SUCCEED,
            lease=lease,
            changes=changes,
            report_sha256=report_sha256,
        )
        engine_builds.queue(connection, last.get("next_engine"), job.project)


def offer(
    database: Database, blobs: BlobStore, job: Job, lease: Lease, candidate: dict[str, Any]
) -> None:
    """Publish what a child offers before its end; the job goes on.

    Every attempt offers it, so that none is lost; the job's `result` is the record that it has
    been published, and a second offer changes nothing.

    Args:
        database: Where.
        blobs: Where the child put its files; they are read again and hashed.
        job: The job.
        lease: The worker's right to it.
        candidate: The child's line.

    Raises:
        LeaseLost: The lease is over; nothing was written.
        BlobMissing, BlobCorrupt: A file of the candidate is not what it should be.
        ArtifactMalformed: The artifact does not hold what it should.
    """
    prepared = _prepare_version(blobs, job, candidate)
    with database.write("candidate") as connection:
        if jobs.get(connection, job.id, job.project).result is None:
            result = first_result(_publish_version(connection, job, prepared))
            changes = {"result": result, "metrics": candidate["metrics"]}
            rows = [("candidate", result), ("metrics", {"candidate": candidate["metrics"]})]
            leases.record(connection, lease, changes, rows)


def _prepare_version(blobs: BlobStore, job: Job, last: dict[str, Any]) -> models.NewVersion:
    """Check every file of the artifact before the transaction, so that it stays short."""
    artifact = verify_artifact(blobs, last["artifact"]["digest"])
    return models.NewVersion(
        name=str(job.model),
        artifact_digest=artifact.digest,
        files=artifact.files_as_json(),
        task=artifact.facts.task,
        architecture=artifact.facts.architecture,
        classes=list(artifact.facts.classes),
        metrics=last["metrics"],
        evaluation_sha256=last.get("evaluation_sha256"),
        job_id=job.id,
        dataset_id=job.dataset_id,
        project=job.project,
    )


def _publish_version(connection: Connection, job: Job, new: models.NewVersion) -> dict[str, Any]:
    version = models.publish(connection, new, promote=bool(job.spec["promote"]))
    return {"model": version.name, "version": version.version}


def _publish_dataset(connection: Connection, job: Job, last: dict[str, Any]) -> dict[str, Any]:
    assert job.dataset_id is not None, "an ingest job has a dataset"
    facts = {name: last["dataset"][name] for name in _DATASET_FACTS}
    datasets.set_ready(connection, job.dataset_id, facts)
    return {"dataset": job.dataset_id}


def _resources(job: Job, last: dict[str, Any]) -> dict[str, Any]:
    assert job.started_at is not None, "a job that ends has begun"
    wall_seconds = (utc_now() - job.started_at).total_seconds()
    own = {"attempts": job.attempt, "wall_seconds": round(wall_seconds, 3)}
    return {**last.get("resources", {}), **own}
