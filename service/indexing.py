"""Builds indexes of nearest images: one at a time for each, in the background, by predictions.

The images of a data set go through the inference process like anybody's, a few at a time, so that
others are not held up. Whoever asks meanwhile waits a little, then hears how far it is.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from jobs.datasets.manifest import Manifest
from jobs.store.models import Version
from models_cache.artifacts import parse_artifact
from models_cache.blobs import BlobStore
from models_cache.errors import InferenceOverloaded, from_wire
from models_cache.neighbours import NeighbourKey, NeighbourStore, Rows, unit_rows
from service.errors import IndexNotReady
from service.inference_client import FEATURES, InferenceClient

log = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 8
_PATIENCE_SECONDS = 20.0  # of a request that finds no index
_BACK_OFF_SECONDS = 0.5  # while the inference process has no room


@dataclass
class _Build:
    task: asyncio.Task[None]
    done: int = 0


class Indexer:
    """Gives the index of a data set's images under a model's backbone.

    Args:
        blobs: Where images and artifacts are.
        store: Where indexes are.
        inference: What looks at images.
    """

    def __init__(self, blobs: BlobStore, store: NeighbourStore, inference: InferenceClient) -> None:
        self._blobs = blobs
        self._store = store
        self._inference = inference
        self._builds: dict[NeighbourKey, _Build] = {}

    async def rows(self, version: Version, manifest: Manifest) -> Rows:
        """Return the rows of a data set's images, float32 `[N, D]` in the manifest's order.

        Raises:
            IndexNotReady: It is being built, and takes long.
            GraftError: It could not be built; the next request tries again.
        """
        key = await run_in_threadpool(self._key, version, manifest)
        rows = await run_in_threadpool(self._store.open, key, len(manifest.images))
        if rows is not None:
            return rows
        build = self._builds.get(key) or self._start(key, version, manifest)
        ended, _ = await asyncio.wait({build.task}, timeout=_PATIENCE_SECONDS)
        if not ended:
            raise IndexNotReady(build.done, len(manifest.images))
        build.task.result()
        rows = await run_in_threadpool(self._store.open, key, len(manifest.images))
        if rows is None:  # the cache was emptied in this moment
            raise IndexNotReady(0, len(manifest.images))
        return rows

    async def close(self) -> None:
        """Give up what is being built."""
        tasks = [build.task for build in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _key(self, version: Version, manifest: Manifest) -> NeighbourKey:
        artifact = parse_artifact(self._blobs.read(version.artifact_digest))
        return NeighbourKey(*artifact.backbone_key, images_digest=manifest.digest)

    def _start(self, key: NeighbourKey, version: Version, manifest: Manifest) -> _Build:
        build = _Build(asyncio.create_task(self._build(key, version, manifest)))
        self._builds[key] = build

        def end(task: asyncio.Task[None]) -> None:
            del self._builds[key]
            if not task.cancelled() and task.exception() is not None:
                log.warning("an index could not be built: %s", task.exception())

        build.task.add_done_callback(end)
        return build

    async def _build(self, key: NeighbourKey, version: Version, manifest: Manifest) -> None:
        parts: list[Rows] = []
        hashes = [image.sha256 for image in manifest.images]
        for start in range(0, len(hashes), _IMAGES_AT_ONCE):
            chosen = hashes[start : start + _IMAGES_AT_ONCE]
            images = [await run_in_threadpool(self._blobs.read, sha256) for sha256 in chosen]
            parts.append(await self._features(version, images))
            with suppress(KeyError):
                self._builds[key].done = start + len(chosen)
        await run_in_threadpool(self._store.write, key, parts)

    async def _features(self, version: Version, images: list[bytes]) -> Rows:
        while True:
            try:
                answer = await self._inference.predict(version.artifact_digest, images, FEATURES)
            except InferenceOverloaded:
                await asyncio.sleep(_BACK_OFF_SECONDS)
                continue
            return unit_rows([_features_of(item) for item in answer["predictions"]])


def _features_of(item: dict[str, Any]) -> list[float]:
    """Return one image's features; it was decoded at its upload, but limits may be lower now."""
    if "error" in item:
        raise from_wire(item["error"])
    features: list[float] = item["features"]
    return features
