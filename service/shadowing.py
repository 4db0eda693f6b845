"""A candidate beside the version that answers: alias `shadow` gets a share of the traffic, too.

The client has its answer before the candidate is asked. Comparisons are added up in memory and
written every few seconds: some may be lost in a crash, they are a sample anyway.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from jobs.store import shadows
from jobs.store.database import DATABASE_AWAY, Database
from jobs.store.models import DEFAULT_ALIAS, Version
from jobs.store.shadows import Comparisons, Pair
from models_cache.errors import GraftError
from service.inference_client import InferenceClient, Wanted
from service.version_finder import VersionFinder

log = logging.getLogger(__name__)

ALIAS = "shadow"
_AT_ONCE = 4  # requests to candidates; beyond it a candidate misses some
_WRITE_SECONDS = 2.0


class Shadows:
    """Asks candidates what was asked of others, and counts.

    Args:
        database: Where counts are.
        versions: Finds candidates.
        inference: Who answers.
        fraction: Share of the requests that a candidate gets, from 0 to 1.
    """

    def __init__(
        self,
        database: Database,
        versions: VersionFinder,
        inference: InferenceClient,
        fraction: float,
    ) -> None:
        self._database = database
        self._versions = versions
        self._inference = inference
        self._fraction = fraction
        self._tasks: set[asyncio.Task[None]] = set()
        self._counted: dict[Pair, Comparisons] = {}
        self._writer: asyncio.Task[None] | None = None

    def offer(
        self,
        reference: str,
        version: Version,
        images: Sequence[bytes | memoryview],
        said: list[dict[str, Any]],
    ) -> None:
        """Consider a request that has been answered; returns at once.

        Args:
            reference: How the model was named; only what `default` serves has a shadow.
            version: What answered.
            images: Encoded, as they were sent.
            said: The answer to each.
        """
        if reference.partition("@")[2] not in ("", DEFAULT_ALIAS):
            return
        if len(self._tasks) >= _AT_ONCE or random.random() >= self._fraction:  # noqa: S311
            return
        task = asyncio.create_task(self._compare(version, images, said))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def write(self) -> None:
        """Write what has been counted."""
        counted, self._counted = self._counted, {}
        if counted:
            try:
                await run_in_threadpool(self._add, counted)
            except DATABASE_AWAY as error:  # the database is away: what was counted is lost
                log.warning("comparisons with shadows could not be written: %s", error)

    async def close(self) -> None:
        """Give up what is under way and write the rest."""
        tasks = [*self._tasks, *([] if self._writer is None else [self._writer])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.write()

    def _add(self, counted: dict[Pair, Comparisons]) -> None:
        with self._database.write("shadow") as connection:
            shadows.add(connection, counted)

    async def _compare(
        self, version: Version, images: Sequence[bytes | memoryview], said: list[dict[str, Any]]
    ) -> None:
        try:
            reference = f"{version.name}@{ALIAS}"
            candidate = await self._versions.find_if_any(reference, version.project)
        except DATABASE_AWAY:  # as when it misses others
            return
        if candidate is None or candidate.version == version.version:
            return
        try:
            answer = await self._inference.predict(candidate.artifact_digest, images, Wanted())
            found = compare(said, answer["predictions"])
        except GraftError:
            found = Comparisons(failed=len(images))
        pair = Pair(version.project, version.name, version.version, candidate.version)
        self._counted[pair] = self._counted.get(pair, Comparisons()) + found
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_soon())

    async def _write_soon(self) -> None:
        await asyncio.sleep(_WRITE_SECONDS)
        await self.write()


def compare(said: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> Comparisons:
    """Count where a candidate says the same as the answers that were given.

    Args:
        said: Answers of the version that was asked, as the inference process gives them.
        candidates: The candidate's to the same images, with all scores.
    """
    total = Comparisons()
    for one, other in zip(said, candidates, strict=True):
        if "error" in one:
            continue  # an image that cannot be read says nothing about anybody
        if "error" in other:
            total += Comparisons(failed=1)
            continue
        top = one["scores"][0]
        scores = {item["label"]: item["score"] for item in other["scores"]}
        difference = abs(top["score"] - scores.get(top["label"], 0.0))
        agreed = int(_answer(one) == _answer(other))
        total += Comparisons(1, agreed, 0, difference, difference)
    return total


def _answer(item: dict[str, Any]) -> set[str]:
    """Return the labels that an answer amounts to; versions may have classes in another order."""
    return set(item.get("labels", [item["scores"][0]["label"]]))
