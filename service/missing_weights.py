"""Weights that a model needs and the disk has not: fetched when a call misses them.

So it is after an import, a restore, or a file that somebody removed.
"""

from __future__ import annotations

from datetime import timedelta

from starlette.concurrency import run_in_threadpool

from jobs import weights_fetching
from jobs.states import JobState
from jobs.store.database import DATABASE_AWAY, Database, utc_now
from jobs.store.jobs import Job
from models_cache.artifacts import describe_artifact
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.errors import ArtifactError, StorageError
from models_cache.weights_errors import WeightsError
from service.errors import WeightsComing

_AGAIN_AFTER = timedelta(minutes=5)  # a source that has not the file is not asked at every call


class MissingWeights:
    """Queues a download where the catalogue knows the file; one at a time for each backbone.

    Args:
        database: Where jobs are.
        blobs: Where artifacts are.
        catalogue: What can be fetched.
    """

    def __init__(self, database: Database, blobs: BlobStore, catalogue: Catalogue) -> None:
        self._database, self._blobs, self._catalogue = database, blobs, catalogue

    async def fetch(self, artifact_digest: str, project: str) -> None:
        """Have the weights of an artifact fetched that are not on disk.

        Returns if the catalogue does not know them, or if the last try failed just now.

        Raises:
            WeightsComing: They are on their way.
        """
        await run_in_threadpool(self._fetch, artifact_digest, project)

    def _fetch(self, artifact_digest: str, project: str) -> None:
        wanted = self._wanted(artifact_digest)
        if wanted is None:
            return
        try:
            with self._database.write("missing_weights") as connection:
                last = weights_fetching.newest(connection, *wanted)
                if last is not None and _has_just_failed(last):
                    return
                weights_fetching.queue(connection, *wanted, project)
        except DATABASE_AWAY:
            return
        raise WeightsComing(wanted[0])

    def _wanted(self, artifact_digest: str) -> tuple[str, str] | None:
        """Return architecture and name of the weights, if the catalogue knows that file."""
        try:
            facts = describe_artifact(self._blobs, artifact_digest).facts
            weights = facts.weights or {}
            wanted = facts.architecture, str(weights.get("name", ""))
            known = self._catalogue.candidates(*wanted)
        except (ArtifactError, StorageError, WeightsError):
            return None
        return wanted if known[0].file == weights.get("file") else None


def _has_just_failed(job: Job) -> bool:
    ended_at = job.finished_at or utc_now()
    return job.status is JobState.FAILED and utc_now() - ended_at < _AGAIN_AFTER
