"""The next batch is made while the present one is learned from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ahead(Generic[T]):
    """Something that another thread makes.

    Args:
        future: What that thread gives.
        make: Makes the same in the thread that calls it.
    """

    def __init__(self, future: Future[T], make: Callable[[], T]) -> None:
        self._future: Future[T] | None = future
        self._make = make

    def take(self) -> T:
        """Return it, or raise what making it raised; called again, it is made in this thread."""
        future, self._future = self._future, None
        return self._make() if future is None else future.result()


def made_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Generator[Ahead[T]]:
    """Yield `make(number)` for each number, in order, one of them ahead of who takes them.

    Args:
        make: Called in one other thread, never twice at once unless what it raised is taken
            again. It must not draw from a global generator.
        numbers: What to make.
    """
    with ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: deque[Ahead[T]] = deque()
        for number in numbers:
            waiting.append(Ahead(pool.submit(make, number), partial(make, number)))
            if len(waiting) > 1:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


class SideStream:
    """Where a CUDA device makes batches while it learns; elsewhere it changes nothing.

    Without it every copy to the device would wait for the step that is being made.

    Args:
        device: Where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, the device works beside what other threads tell it; at the end that is done."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def handed_over(self, tensor: Tensor) -> Tensor:
        """Return a tensor made inside, whose memory is kept while learning needs it."""
        if self._stream is not None:
            tensor.record_stream(torch.cuda.default_stream(tensor.device))
        return tensor
