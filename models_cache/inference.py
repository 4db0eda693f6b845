"""The inference process: owns the device for serving and answers over a socket.

A plain ASGI application without a web framework. Only the api talks to it, so it knows digests and
bytes, no names and no users. Calls:

    POST /predict   frames (`models_cache.wire`): {"artifact", "top_k", "max_error"} and encoded
                    images; "max_error" is the error budget, null if there is none; with
                    "features" each answer holds what the backbone makes of the image, with
                    "logits" what its scores are made of; with "preprocessed" the images are
                    tensors as the network takes them; what is not ready after
                    "timeout_seconds" is dropped
    POST /load      {"artifact"}: have it in memory before the first prediction
    GET  /healthz   what is loaded and how busy it is
    GET  /metrics   the same and more, counted since the start, in Prometheus' text format

Images of one request are decoded in threads and queued as they become ready; an image that cannot
be decoded fails alone. Anything else that fails is the model's or the machine's fault and fails
the request with `{"error": {"code", "facts"}}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST

from models_cache import wire
from models_cache.answer_json import Prediction, answer_of, milliseconds
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.asgi import (
    ClientGone,
    Receive,
    Scope,
    Send,
    as_json,
    followed,
    listen,
    read_body,
    respond,
    unless_client_gone,
)
from models_cache.batching import Batcher
from models_cache.decode import ImageLimits
from models_cache.devices import choose_device, keep_array_products_to_one_thread, use_full_float32
from models_cache.errors import (
    BlobMissing,
    GraftError,
    ImageError,
    PredictTimedOut,
    PredictTooLarge,
    WireMalformed,
    to_wire,
)
from models_cache.fair_pool import FairPool
from models_cache.loaded import Pinned, SharedLoads
from models_cache.predictor import Predictor
from models_cache.room import Room
from models_cache.served_models import BackboneKey, LoadedBackbone, Model
from models_cache.serving_metrics import ServingMetrics
from models_cache.wanted import Wanted, digest_of, wanted_of

log = logging.getLogger(__name__)

_MAX_JSON_BYTES = 4096  # of a /load body
_LOADERS = 4  # threads that read weights; a slow load must not hold up another model's
_ADOPT_SECONDS = 2.0  # between looks for engines that jobs built
_SHORT_ANSWER_SCORES = 32  # encoded in 0.02 to 0.25 ms; a hop to a thread takes 0.1
_KEEP_ALIVE_SECONDS = 3600  # the api's pool closes idle connections, never this side first
_Key = TypeVar("_Key")
_Loaded = TypeVar("_Loaded")
_STATUS: dict[type[GraftError], int] = {
    GraftError: 503,  # the model or the machine cannot answer now
    WireMalformed: 400,
    PredictTooLarge: 413,
    BlobMissing: 404,
}


@dataclass(frozen=True)
class InferenceConfig:
    """Everything the process needs to know.

    Args:
        data_folder: Holds `blobs/` and `weights/`.
        bind: `unix:///path/to/socket` or `http://host:port`.
        device: `auto`, `cpu`, `cuda` or `cuda:0`.
        threads: CPU threads of a forward pass, and images decoded at once.
        cache_bytes: Bound on loaded backbones and heads that are not in use.
        max_image_pixels: Larger images are refused.
        max_request_bytes: Bound on one request's images together.
        max_batch_images: Most images in one forward pass; 0: what is fastest on the device.
        max_accepted_images: Most images accepted and not yet answered; beyond it, `overloaded`.
            As many more may wait for their models to be loaded. See `models_cache.room`.
        drain_seconds: How long accepted requests may take after SIGTERM.
    """

    data_folder: Path
    bind: str
    threads: int
    device: str = "auto"
    cache_bytes: int = 2 << 30
    max_image_pixels: int = 40_000_000
    max_request_bytes: int = 64 << 20
    max_batch_images: int = 0
    max_accepted_images: int = 512
    drain_seconds: int = 30


class InferenceApp:
    """The ASGI application.

    Args:
        predictor: Loads models and runs them.
        config: Limits and thread counts.
    """

    def __init__(self, predictor: Predictor, config: InferenceConfig) -> None:
        self._predictor = predictor
        self._config = config
        self._metrics = ServingMetrics(predictor.occupancy, self._images_by_place)
        self._batcher: Batcher[BackboneKey, QueuedImage, ImageOutput] = Batcher(
            self._metrics.timed(predictor.forward),
            config.max_batch_images or predictor.best_batch_images,
            config.max_accepted_images,
        )
        self._decoders = FairPool(config.threads, "decode")
        # Not the decoders': what is computed already shall not queue behind what is not
        self._encoders = ThreadPoolExecutor(1, "encode")
        self._loaders = ThreadPoolExecutor(_LOADERS, "load")
        self._waiting = Room(config.max_accepted_images)  # for their model to be loaded
        self._models = SharedLoads(predictor.pin_if_loaded, self._load_model)
        self._backbones = SharedLoads(predictor.pin_backbone_if_loaded, self._load_backbone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: a request, or the process's lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] == "/metrics":
            await respond(send, 200, self._metrics.page(), CONTENT_TYPE_LATEST.encode())
        elif scope["type"] == "http":
            try:
                with followed(scope):
                    status, body = 200, await self._answer(scope, receive)
            except GraftError as error:
                status, body = _status_of(type(error)), as_json({"error": to_wire(error)})
            except ClientGone:
                return
            await respond(send, status, body)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        self._batcher.start()
        adopting = asyncio.create_task(self._adopt_built_engines())
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown: every accepted request has been answered
        adopting.cancel()
        await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._decoders.close)
        for pool in (self._encoders, self._loaders):
            pool.shutdown(cancel_futures=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        match (scope["method"], scope["path"]):
            case ("GET", "/healthz"):
                return as_json(self._health())
            case ("POST", "/predict"):
                # The header's bound comes on top: the limit is the images'
                limit = self._config.max_request_bytes + wire.MAX_HEADER_BYTES
                body = await read_body(scope, receive, limit)
                return await unless_client_gone(self._predict(body), receive)
            case ("POST", "/load"):
                body = await read_body(scope, receive, _MAX_JSON_BYTES)
                return await unless_client_gone(self._load(body), receive)
            case _:
                pass
        raise WireMalformed(f"there is no call {scope['method']} {scope['path'][:80]!r}")

    def _health(self) -> dict[str, Any]:
        return {
            "status": "ok",
            **self._predictor.status(),
            "accepted_images": self._batcher.accepted_images,
            "waiting_images": self._waiting.images,
        }

    def _images_by_place(self) -> dict[str, int]:
        """Return how many images are accepted and not yet answered, by what they wait for."""
        return {"accepted": self._batcher.accepted_images, "loading": self._waiting.images}

    async def _load(self, body: memoryview) -> bytes:
        try:
            digest = digest_of(json.loads(bytes(body)))
        except (ValueError, RecursionError) as error:
            raise WireMalformed(f"the body is no JSON: {error}") from error
        started = time.monotonic()
        with await self._models.pin(digest):
            return as_json(
                {"artifact": digest, "load_ms": milliseconds(time.monotonic() - started)}
            )

    async def _predict(self, body: memoryview) -> bytes:
        header, images = wire.decode(body, self._config.max_accepted_images)
        digest, wanted = digest_of(header), wanted_of(header)
        try:
            async with asyncio.timeout(wanted.timeout_seconds) as timeout:
                return await self._answer_to(digest, images, wanted)
        except TimeoutError:
            if wanted.timeout_seconds is None or not timeout.expired():
                raise
            raise PredictTimedOut(wanted.timeout_seconds) from None

    async def _answer_to(self, digest: str, images: Sequence[memoryview], wanted: Wanted) -> bytes:
        """Return the answer; cancelling it drops what has not been decoded and computed."""
        count = len(images)
        with await self._pinned(digest, count) as model, self._batcher.reserve(count, digest):
            outcomes = await asyncio.gather(
                *(self._predict_image(model, image, wanted.preprocessed) for image in images),
                return_exceptions=True,  # the others end first: nothing of this request is left
            )
            predictions = _all_or_raise(outcomes)
            if _is_short(model, predictions, wanted):
                return answer_of(model, predictions, wanted)
            return await asyncio.get_running_loop().run_in_executor(
                self._encoders, answer_of, model, predictions, wanted
            )

    async def _predict_image(
        self, model: Model, image: memoryview, preprocessed: bool
    ) -> Prediction:
        started = time.monotonic()
        owner, preprocess = model.head.artifact.digest, self._predictor.preprocess
        try:
            pixels = await asyncio.wrap_future(
                self._decoders.submit(owner, lambda: preprocess(model, image, preprocessed))
            )
        except ImageError as error:
            self._metrics.saw_refusal(model.backbone_key)
            return Prediction(error, time.monotonic() - started)
        decode_seconds = time.monotonic() - started
        self._metrics.saw_decode(model.backbone_key, decode_seconds)
        answer = await asyncio.wrap_future(
            self._batcher.submit(model.backbone_key, owner, QueuedImage(model, pixels))
        )
        self._metrics.saw_queue(model.backbone_key, answer.queue_seconds)
        return Prediction(
            answer.value,
            decode_seconds,
            answer.queue_seconds,
            answer.forward_seconds,
            answer.batch_images,
        )

    async def _pinned(self, digest: str, images: int) -> Pinned[Model]:
        pinned = self._predictor.pin_if_loaded(digest)
        if pinned is not None:
            return pinned
        # Room of their own: those who wait for a slow load must not fill that of loaded models
        with self._waiting.reserve(images, digest):
            return await self._models.pin(digest)

    async def _load_model(self, digest: str) -> Pinned[Model]:
        key = await self._in_loader(self._predictor.backbone_key_of, digest)
        with await self._backbones.pin(key):
            return await self._in_loader(self._predictor.pin, digest)

    async def _load_backbone(self, key: BackboneKey) -> Pinned[LoadedBackbone]:
        return await self._in_loader(self._predictor.pin_backbone, key)

    async def _adopt_built_engines(self) -> None:
        """Look, now and then, for faster engines of what is loaded."""
        while True:
            await asyncio.sleep(_ADOPT_SECONDS)
            try:
                await asyncio.to_thread(self._predictor.adopt_built_engines)
            except GraftError:  # no memory for it: what is loaded goes on
                log.exception("a faster engine could not be adopted")

    async def _in_loader(self, load: Callable[[_Key], _Loaded], key: _Key) -> _Loaded:
        return await asyncio.get_running_loop().run_in_executor(self._loaders, load, key)


def serve(config: InferenceConfig) -> None:
    """Run the inference process until SIGTERM or SIGINT; accepted requests are answered.

    Raises:
        InferenceAddressInvalid: `config.bind` cannot be listened at.
        DeviceUnavailable: There is no such device.
    """
    torch.set_num_threads(config.threads)
    keep_array_products_to_one_thread()  # those of heads
    use_full_float32()
    predictor = Predictor(
        config.data_folder,
        choose_device(config.device),
        config.cache_bytes,
        ImageLimits(max_pixels=config.max_image_pixels),
    )
    listener = listen(config.bind)
    server = uvicorn.Server(
        uvicorn.Config(
            InferenceApp(predictor, config),
            http="httptools",  # no bound on headers: who calls here is the api
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=config.drain_seconds,
        )
    )
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after draining; the process shall end with status 0
        signal.signal(signal_number, lambda *_: None)
    server.run(sockets=[listener])


def _all_or_raise(outcomes: Sequence[Prediction | BaseException]) -> list[Prediction]:
    predictions = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        predictions.append(outcome)
    return predictions


def _is_short(model: Model, predictions: Sequence[Prediction], wanted: Wanted) -> bool:
    """Tell whether an answer may be encoded in the event loop."""
    scores = len(predictions) * len(model.classes)
    return scores <= _SHORT_ANSWER_SCORES and not wanted.features


def _status_of(error: type[GraftError]) -> int:
    return next(_STATUS[cls] for cls in error.__mro__ if cls in _STATUS)
