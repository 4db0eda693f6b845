"""The api's line to the inference process: frames over a local socket."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models_cache import asgi, wire
from models_cache.errors import (
    GraftError,
    InferenceUnavailable,
    from_wire,
)
from service.http_connections import HttpConnections

_GRACE_SECONDS = 5.0  # the process itself says that the time is over
_HEALTH_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """What images are, and what to say of them.

    Args:
        top_k: How many scores; None for all.
        max_error: Error budget, between 0 and 1, if there is one.
        features: Whether to return what the backbone makes of them, too.
        logits: Whether to return what their scores are made of, in the order of the classes.
        preprocessed: Whether they are tensors as the network takes them, not encoded.
        timeout_seconds: How long the answer is waited for; None for as long as the client does.
    """

    top_k: int | None = None
    max_error: float | None = None
    features: bool = False
    logits: bool = False
    preprocessed: bool = False
    timeout_seconds: float | None = None


#: What a backbone makes of images; scores are by the way.
FEATURES = Wanted(top_k=1, features=True)


class InferenceClient:
    """Sends images of one artifact at a time; self-contained messages, no state.

    Args:
        url: `unix:///path/of.sock` or `http://host:port`.
        timeout_seconds: Longest that an answer is waited for; a first load reads and checks
            weights.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._connections = HttpConnections(url)
        self._timeout_seconds = timeout_seconds

    async def predict(
        self, artifact_digest: str, images: Sequence[bytes | memoryview], wanted: Wanted
    ) -> dict[str, Any]:
        """Return `{"predictions", "abstention", "timing"}`; an image may have an `error` instead.

        Args:
            artifact_digest: The model.
            images: Encoded, or float32 `[3, crop, crop]` each.
            wanted: What to say of them.

        Raises:
            InferenceUnavailable: The process cannot be reached.
            PredictTimedOut: The answer took too long.
            GraftError: What the process said went wrong.
        """
        timeout_seconds = min(wanted.timeout_seconds or math.inf, self._timeout_seconds)
        header = {"artifact": artifact_digest, **vars(wanted), "timeout_seconds": timeout_seconds}
        body = wire.encode(header, images)
        return await self._post("/predict", body)

    async def load(self, artifact_digest: str) -> None:
        """Ask for an artifact to be loaded ahead of its first prediction."""
        await self._post("/load", json.dumps({"artifact": artifact_digest}).encode())

    async def health(self) -> dict[str, Any] | None:
        """Return what the process says of itself, or None if it does not answer."""
        body = await self._get("/healthz")
        return None if body is None else dict(json.loads(body))

    async def metrics(self) -> bytes | None:
        """Return the process's page of metrics, or None if it does not answer."""
        return await self._get("/metrics")

    async def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    async def _get(self, path: str) -> bytes | None:
        try:
            answer = await self._connections.request("GET", path, b"", _HEALTH_SECONDS)
        except InferenceUnavailable:
            return None
        return answer.body if answer.status == 200 else None

    async def _post(self, path: str, body: bytes) -> dict[str, Any]:
        seconds = self._timeout_seconds + _GRACE_SECONDS
        answer = await self._connections.request("POST", path, body, seconds, asgi.trail())
        try:
            value = json.loads(answer.body)
        except ValueError as error:  # its own "Internal Server Error"
            raise InferenceUnavailable(f"status {answer.status}") from error
        if answer.status != 200:
            raise _error_of(value)
        return dict(value)


def _error_of(value: dict[str, Any]) -> GraftError:
    return from_wire(value["error"]) if "error" in value else InferenceUnavailable("no answer")
