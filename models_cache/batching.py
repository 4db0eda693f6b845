"""Requests into batches, without waiting: the next batch is what queued while the last one ran.

One thread owns the device and runs one forward pass at a time, of items of one key (the same
backbone). Keys take turns, and the owners of items within a key, so that nobody waits behind all
that another sent. Knows neither torch nor images: `forward` is passed in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from models_cache.errors import GraftError, InferenceUnavailable
from models_cache.room import Room
from models_cache.turns import Turns

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What became of one item, and what it cost.

    Args:
        value: The result of `forward` for this item.
        queue_seconds: From `submit` to the start of its batch.
        forward_seconds: Duration of its batch.
        batch_images: Items in its batch.
    """

    value: R
    queue_seconds: float
    forward_seconds: float
    batch_images: int


@dataclass(eq=False)
class _Item(Generic[K, P, R]):
    key: K
    payload: P
    answer: Future[Answer[R]] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)


class Batcher(Generic[K, P, R]):
    """A bounded queue and the one thread that empties it.

    Args:
        forward: Gives one result or one error per payload, in order. If it raises, the batch is
            halved and tried again, down to single items: one that cannot be computed fails alone,
            and a batch too large for the device's memory still gets its answers.
        max_batch_images: Most items in one call of `forward`.
        max_accepted_images: Most items reserved and not yet answered.
    """

    def __init__(
        self,
        forward: Callable[[K, Sequence[P]], Sequence[R | GraftError]],
        max_batch_images: int,
        max_accepted_images: int,
    ) -> None:
        self._forward = forward
        self._max_batch_images = max_batch_images
        self._accepted = Room(max_accepted_images)
        self._queue: Turns[K, _Item[K, P, R]] = Turns()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    @property
    def accepted_images(self) -> int:
        """How many items are reserved and not yet answered."""
        return self._accepted.images

    def start(self) -> None:
        """Start the thread that runs `forward`."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more, finish what was submitted and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def reserve(self, images: int, owner: Hashable) -> AbstractContextManager[None]:
        """Hold room for an owner's items from before they are decoded until they are answered.

        The bound covers decoding too: otherwise overload would pile up in front of the queue.

        Raises:
            InferenceOverloaded: There is no room for this owner.
        """
        return self._accepted.reserve(images, owner)

    def submit(self, key: K, owner: Hashable, payload: P) -> Future[Answer[R]]:
        """Queue one item, inside `reserve`; cancelling the future drops it from the queue.

        Raises:
            InferenceUnavailable: `close` was called.
        """
        item: _Item[K, P, R] = _Item(key, payload)
        with self._changed:
            if self._closing:
                raise InferenceUnavailable("it is stopping")
            self._queue.put(key, owner, item)
            self._changed.notify()
        return item.answer

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
            # Otherwise the images, futures and models of an answered batch stay until the next
            del batch

    def _next_batch(self) -> list[_Item[K, P, R]]:
        """Wait for items and take a batch off the queue; empty only when closed and finished."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closing)
                batch = self._queue.take(
                    self._max_batch_images, lambda item: item.answer.set_running_or_notify_cancel()
                )
                if batch or self._closing:
                    return batch

    def _answer(self, batch: Sequence[_Item[K, P, R]]) -> None:
        started = time.monotonic()
        try:
            results = self._forward(batch[0].key, [item.payload for item in batch])
        except Exception as error:  # noqa: BLE001 - the batcher: whatever it is, callers hear of it
            if len(batch) == 1:
                if not isinstance(error, GraftError):
                    _log.exception("a forward pass failed")
                batch[0].answer.set_exception(error)
                return
            _log.warning("a batch of %d failed (%r); trying halves", len(batch), error)
        else:
            seconds = time.monotonic() - started
            for item, result in zip(batch, results, strict=True):
                _resolve(item, result, started, seconds, len(batch))
            return
        # Out here the error is gone, and with its frames the tensors of the batch that failed
        middle = len(batch) // 2
        self._answer(batch[:middle])
        self._answer(batch[middle:])


def _resolve(
    item: _Item[K, P, R], result: R | GraftError, started: float, seconds: float, images: int
) -> None:
    if isinstance(result, GraftError):
        item.answer.set_exception(result)
    else:
        item.answer.set_result(Answer(result, started - item.queued_at, seconds, images))
