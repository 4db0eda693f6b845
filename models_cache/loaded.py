"""An LRU of loaded things, bounded in bytes: the one place that decides what stays in memory.

Concurrent callers of one key share one load. What someone has pinned is never evicted, so the
bound may be passed while everything loaded is in use; it is met again as pins are released. The
most recently used value always stays, even if it alone is larger than the bound: a machine that
serves one large model does not load it for every request.

`LoadedCache` blocks the threads that wait for a load. `SharedLoads` stands in front of it in an
event loop, where a load takes one thread however many wait for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Pinned(Generic[V]):
    """A loaded value that is not evicted until it is released; a context manager.

    Args:
        value: The loaded value.
        release: Called once, at the first `release`.
    """

    def __init__(self, value: V, release: Callable[[], None]) -> None:
        self.value = value
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Allow the eviction again; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> V:
        return self.value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Occupancy:
    """What a cache holds, and what it has done so far.

    Args:
        count: Values that are loaded.
        loaded_bytes: Sum of their sizes.
        loads: Loads that succeeded.
        load_seconds: Their durations together.
        evictions: Values dropped to meet the bound.
    """

    count: int
    loaded_bytes: int
    loads: int
    load_seconds: float
    evictions: int


class _Entry(Generic[V]):
    """One key: its load (under way or done), its size in bytes and how many use or await it."""

    def __init__(self) -> None:
        self.loading: Future[V] = Future()
        self.size_bytes = 0
        self.pins = 0


class LoadedCache(Generic[K, V]):
    """Values by key, least recently used first out. Thread-safe.

    Args:
        load: Makes the value of a key; called without the lock, once for concurrent callers. Its
            error reaches all of them, and the next caller tries again.
        size_of: Bytes that a value holds.
        capacity_bytes: Bound on the sum of sizes of what is not in use.
    """

    def __init__(
        self, load: Callable[[K], V], size_of: Callable[[V], int], capacity_bytes: int
    ) -> None:
        self._load = load
        self._size_of = size_of
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()  # least recently used first
        self._loaded_bytes = 0
        self._loads = 0
        self._load_seconds = 0.0
        self._evictions = 0
        self._lock = threading.Lock()

    @property
    def loaded_bytes(self) -> int:
        """Sum of the sizes of all loaded values."""
        return self._loaded_bytes

    def keys(self) -> list[K]:
        """Return the keys of loaded values, least recently used first."""
        with self._lock:
            return [key for key, entry in self._entries.items() if entry.loading.done()]

    def occupancy(self) -> Occupancy:
        """Return what is loaded now and what was done so far."""
        with self._lock:
            count = sum(entry.loading.done() for entry in self._entries.values())
            return Occupancy(
                count, self._loaded_bytes, self._loads, self._load_seconds, self._evictions
            )

    def pin(self, key: K) -> Pinned[V]:
        """Return the value of `key`, pinned; load it, or wait for the load that is under way."""
        with self._lock:
            entry = self._entries.get(key)
            first = entry is None
            if entry is None:
                entry = self._entries[key] = _Entry()
            self._use(key, entry)
        if first:
            self._fill(key, entry)
        return Pinned(entry.loading.result(), lambda: self._release(entry))

    def pin_if_loaded(self, key: K) -> Pinned[V] | None:
        """Return the value of `key`, pinned, or `None` if it is not loaded; never blocks."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.loading.done():
                return None
            self._use(key, entry)
        return Pinned(entry.loading.result(), lambda: self._release(entry))

    def replace(self, key: K, value: V) -> None:
        """Give later callers another value, if the key is loaded; who pinned the old keeps it."""
        done: Future[V] = Future()
        done.set_result(value)
        size_bytes = self._size_of(value)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.loading.done():
                return
            self._loaded_bytes += size_bytes - entry.size_bytes
            entry.loading, entry.size_bytes = done, size_bytes
            self._evict()

    def _use(self, key: K, entry: _Entry[V]) -> None:
        entry.pins += 1  # waiters pin before the load ends: nothing evicts it in between
        self._entries.move_to_end(key)

    def _fill(self, key: K, entry: _Entry[V]) -> None:
        started = time.monotonic()
        try:
            value = self._load(key)
            size_bytes = self._size_of(value)
        except BaseException as error:  # noqa: BLE001 - whatever it is, all who wait hear of it
            with self._lock:
                del self._entries[key]
            entry.loading.set_exception(error)
            return
        with self._lock:
            entry.size_bytes = size_bytes
            self._loaded_bytes += size_bytes
            self._loads += 1
            self._load_seconds += time.monotonic() - started
            entry.loading.set_result(value)
            self._evict()

    def _release(self, entry: _Entry[V]) -> None:
        with self._lock:
            entry.pins -= 1
            if entry.pins == 0:
                self._evict()

    def _evict(self) -> None:
        """Drop unused values, oldest first, until the bound is met; the newest one stays."""
        excess_bytes = self._loaded_bytes - self._capacity_bytes
        if excess_bytes <= 0:
            return
        newest = next(reversed(self._entries.values()))
        dropped: list[tuple[K, _Entry[V]]] = []
        for key, entry in self._entries.items():  # no copy: a release is paid by every request
            if excess_bytes <= 0 or entry is newest:
                break
            if entry.pins == 0:  # nor is it still loading: whoever loads it has pinned it
                dropped.append((key, entry))
                excess_bytes -= entry.size_bytes
        for key, entry in dropped:
            del self._entries[key]
            self._loaded_bytes -= entry.size_bytes
        self._evictions += len(dropped)


class _SharedLoad(Generic[V]):
    """One load under way, and how many await it."""

    def __init__(self, task: asyncio.Task[Pinned[V]]) -> None:
        self.task = task
        self.waiting = 0

    def let_go(self) -> None:
        """Release what was loaded, once it is loaded and nobody awaits it."""
        if self.waiting or not self.task.done() or self.task.cancelled():
            return
        if self.task.exception() is None:
            self.task.result().release()


class SharedLoads(Generic[K, V]):
    """One load per key under way in an event loop; whoever awaits it holds no thread.

    Args:
        pin_if_loaded: Pins the value of a key, or gives `None`; it must find what `load` gave for
            as long as that is pinned.
        load: Loads the value of a key and pins it. Its error reaches all who wait, and the next
            caller tries again; it goes on when all who waited gave up.
    """

    def __init__(
        self,
        pin_if_loaded: Callable[[K], Pinned[V] | None],
        load: Callable[[K], Coroutine[Any, Any, Pinned[V]]],
    ) -> None:
        self._pin_if_loaded = pin_if_loaded
        self._load = load
        self._loads: dict[K, _SharedLoad[V]] = {}

    async def pin(self, key: K) -> Pinned[V]:
        """Return the value of `key`, pinned; load it, or await the load that is under way."""
        pinned = self._pin_if_loaded(key)
        if pinned is not None:
            return pinned
        load = self._loads.get(key) or self._start(key)
        load.waiting += 1
        try:
            await asyncio.wait({load.task})  # unlike awaiting it: who gives up does not cancel it
            load.task.result()
            pinned = self._pin_if_loaded(key)
            assert pinned is not None, "the load holds it until nobody waits"
            return pinned
        finally:
            load.waiting -= 1
            load.let_go()

    def _start(self, key: K) -> _SharedLoad[V]:
        load = self._loads[key] = _SharedLoad(asyncio.create_task(self._load(key)))

        def end(_: asyncio.Task[Pinned[V]]) -> None:
            del self._loads[key]
            load.let_go()

        load.task.add_done_callback(end)
        return load
