"""Things that wait and whose turn is next: nobody starves because another sends much.

Items have a key and an owner. Keys take turns, and so do the owners within a key, one item each:
an item of a new owner is behind one item of each other owner, however many these have. Not
thread-safe: whoever holds one locks around it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Turns(Generic[K, T]):
    """Items by key and owner, taken in turns."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[K, OrderedDict[Hashable, deque[T]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, key: K, owner: Hashable, item: T) -> None:
        """Queue an item behind the others of its owner."""
        self._waiting.setdefault(key, OrderedDict()).setdefault(owner, deque()).append(item)

    def take(self, limit: int, is_wanted: Callable[[T], bool]) -> list[T]:
        """Take up to `limit` items of the key whose turn it is.

        Args:
            limit: Most items.
            is_wanted: Called for each; one that is not wanted is dropped.

        Returns:
            Wanted items, one at least unless nothing wanted is left.
        """
        taken: list[T] = []
        while self._waiting and not taken:
            key, owners = self._waiting.popitem(last=False)
            while owners and len(taken) < limit:
                owner, items = owners.popitem(last=False)
                item = items.popleft()
                if items:
                    owners[owner] = items
                if is_wanted(item):
                    taken.append(item)
            if owners:
                self._waiting[key] = owners
        return taken
