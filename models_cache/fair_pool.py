"""Threads that work for several owners in turns: what one of them sends does not hold up others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from models_cache.turns import Turns

_Result = TypeVar("_Result")


class FairPool:
    """A few threads and what waits for them.

    Args:
        threads: How many.
        name: Of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._turns: Turns[None, tuple[Future[Any], Callable[[], Any]]] = Turns()
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, owner: Hashable, call: Callable[[], _Result]) -> Future[_Result]:
        """Queue a call behind the owner's others; cancelling the future drops it from the queue."""
        future: Future[_Result] = Future()
        with self._changed:
            self._turns.put(None, owner, (future, call))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Drop what has not begun, and end the threads."""
        with self._changed:
            self._closing = True
            while left := self._turns.take(1, lambda _: True):
                left[0][0].cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while found := self._next():
            future, call = found[0]
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller hears of it
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del found, future, call  # an image that was answered is not kept until the next

    def _next(self) -> list[tuple[Future[Any], Callable[[], Any]]]:
        """Wait for a call and take it; empty when closed."""
        with self._changed:
            while not self._closing:
                if found := self._turns.take(1, _begins):
                    return found
                self._changed.wait_for(lambda: self._turns or self._closing)
            return []


def _begins(item: tuple[Future[Any], Callable[[], Any]]) -> bool:
    return item[0].set_running_or_notify_cancel()
