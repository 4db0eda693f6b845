"""How much may be in one place at a time, and how much of it one owner may hold."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from models_cache.errors import InferenceOverloaded

_SMOOTHING = 0.1  # weight of the newest stay in the mean
_LONGEST_RETRY_SECONDS = 60


class Room:
    """A bound on how many images may be in one place at a time. Thread-safe.

    An owner that holds some already gets more only while as much as it would hold is left free for
    others: one that floods has at most half, two have a third each, and a newcomer finds room.

    Args:
        limit_images: Most images inside.

    Source:
        Choudhury and Hahne 1998, doi:10.1109/90.664262 (dynamic queue length thresholds, alpha 1).
    """

    def __init__(self, limit_images: int) -> None:
        self._limit_images = limit_images
        self._held: Counter[Hashable] = Counter()
        self._images = 0
        self._mean_stay_seconds = 0.0
        self._lock = threading.Lock()

    @property
    def images(self) -> int:
        """How many images are inside."""
        return self._images

    @contextmanager
    def reserve(self, images: int, owner: Hashable) -> Iterator[None]:
        """Hold room for `images` of an owner while the block runs.

        Raises:
            InferenceOverloaded: There is not so much left for this owner. It says when to try
                again: after as long as the last ones stayed, which by Little's law is how long
                those inside take at the present rate.
        """
        with self._lock:
            free, held = self._limit_images - self._images - images, self._held[owner]
            if free < 0 or (held and held + images > free):
                raise InferenceOverloaded(
                    self._images, self._limit_images, self._retry_after_seconds()
                )
            self._images += images
            self._held[owner] += images
        entered = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                stay_seconds = time.monotonic() - entered
                self._mean_stay_seconds += _SMOOTHING * (stay_seconds - self._mean_stay_seconds)
                self._images -= images
                self._held[owner] -= images
                if not self._held[owner]:
                    del self._held[owner]

    def _retry_after_seconds(self) -> int:
        return min(_LONGEST_RETRY_SECONDS, max(1, math.ceil(self._mean_stay_seconds)))
