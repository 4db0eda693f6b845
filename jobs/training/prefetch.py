"""The next batch is made while the present one is learned from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Generator[T]:
    """Yield `make(number)` for each number, in order, one of them ahead of who takes them.

    Args:
        make: Called in one other thread, never twice at once; what it raises is raised here. It
            must not draw from a global generator.
        numbers: What to make.
    """
    with ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: deque[Future[T]] = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
