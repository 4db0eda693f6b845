"""An LRU of loaded things, bounded in bytes: the one place that decides what stays in memory.

Concurrent callers of one key share one load. What someone has pinned is never evicted, so the
bound may be passed while everything loaded is in use; it is met again as pins are released. The
most recently used value always stays, even if it alone is larger than the bound: a machine that
serves one large model does not load it for every request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, TypeVar

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
        self._lock = threading.Lock()

    @property
    def loaded_bytes(self) -> int:
        """Sum of the sizes of all loaded values."""
        return self._loaded_bytes

    def keys(self) -> list[K]:
        """Return the keys of loaded values, least recently used first."""
        with self._lock:
            return [key for key, entry in self._entries.items() if entry.loading.done()]

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

    def _use(self, key: K, entry: _Entry[V]) -> None:
        entry.pins += 1  # waiters pin before the load ends: nothing evicts it in between
        self._entries.move_to_end(key)

    def _fill(self, key: K, entry: _Entry[V]) -> None:
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
            entry.loading.set_result(value)
            self._evict()

    def _release(self, entry: _Entry[V]) -> None:
        with self._lock:
            entry.pins -= 1
            self._evict()

    def _evict(self) -> None:
        """Drop unused values, oldest first, until the bound is met; the newest one stays."""
        for key, entry in list(self._entries.items())[:-1]:
            if self._loaded_bytes <= self._capacity_bytes:
                return
            if entry.pins == 0 and entry.loading.done():
                del self._entries[key]
                self._loaded_bytes -= entry.size_bytes
