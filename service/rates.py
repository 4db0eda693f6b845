"""How often somebody may do something: token buckets in the memory of one api process."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MOST_OWNERS = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float  # seconds of the clock at the last look


class Rates:
    """One bucket per owner: a minute's worth at once, refilled steadily. Thread-safe.

    Of very many owners the longest unseen are forgotten, which fills their buckets.

    Args:
        clock: Seconds that only grow; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, owner: str, per_minute: int) -> int | None:
        """Take one token of an owner's; return None, or after how many seconds there is one.

        Args:
            owner: Whose bucket.
            per_minute: How many tokens it holds, and gets in a minute.
        """
        now, per_second = self._clock(), per_minute / 60
        with self._lock:
            bucket = self._buckets.pop(owner, None) or _Bucket(per_minute, now)
            self._buckets[owner] = bucket
            bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_second)
            bucket.at = now
            if len(self._buckets) > _MOST_OWNERS:
                self._buckets.popitem(last=False)
            if bucket.tokens < 1:
                return math.ceil((1 - bucket.tokens) / per_second)
            bucket.tokens -= 1
            return None
