"""Weights that a model needs and the disk has not: fetched when a call misses them.

So it is after an import, a restore, or a file that somebody removed.
"""

from __future__ import annotations

import time

from starlette.concurrency import run_in_threadpool

from jobs import weights_fetching
from jobs.store.database import DATABASE_AWAY, Database
from models_cache.artifacts import describe_artifact
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.errors import ArtifactError, StorageError
from models_cache.weights_errors import WeightsError
from service.errors import WeightsComing

_AGAIN_SECONDS = 30.0  # a source that has not the file is not asked at every prediction


class MissingWeights:
    """Queues a download where the catalogue knows the file; one at a time for each backbone.

    Args:
        database: Where jobs are.
        blobs: Where artifacts are.
        catalogue: What can be fetched.
    """

    def __init__(self, database: Database, blobs: BlobStore, catalogue: Catalogue) -> None:
        self._database, self._blobs, self._catalogue = database, blobs, catalogue
        self._asked_at: dict[tuple[str, str], float] = {}

    async def fetch(self, artifact_digest: str, project: str) -> None:
        """Have the weights of an artifact fetched that are not on disk; return if none knows how.

        Raises:
            WeightsComing: They are on their way.
        """
        await run_in_threadpool(self._fetch, artifact_digest, project)

    def _fetch(self, artifact_digest: str, project: str) -> None:
        try:
            facts = describe_artifact(self._blobs, artifact_digest).facts
            assert facts.weights is not None  # it is they that are missed
            name = str(facts.weights.get("name", ""))
            [known] = self._catalogue.candidates(facts.architecture, name)
        except (ArtifactError, StorageError, WeightsError):
            return
        if known.file != facts.weights.get("file"):
            return
        asked, now = (facts.architecture, name), time.monotonic()
        if now - self._asked_at.get(asked, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
            try:
                with self._database.write("missing_weights") as connection:
                    weights_fetching.queue(connection, *asked, project)
            except DATABASE_AWAY:
                return
            self._asked_at[asked] = now
        raise WeightsComing(facts.architecture)
