from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack

import pytest

from models_cache.batching import Answer, Batcher
from models_cache.errors import (
    GraftError,
    InferenceOverloaded,
    InferenceUnavailable,
    ModelUnhealthy,
)

DEADLINE_SECONDS = 20
_HELD_SECONDS = 0.05
Batch = tuple[str, list[int]]


class Device:
    """A forward pass that doubles numbers, remembers its batches, and can be held."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.started = threading.Semaphore(0)
        self.may_run = threading.Semaphore(0)
        self.compute: Callable[[list[int]], Sequence[int | GraftError]] = lambda n: [
            2 * i for i in n
        ]

    def __call__(self, key: str, payloads: Sequence[int]) -> Sequence[int | GraftError]:
        self.batches.append((key, list(payloads)))
        self.started.release()
        assert self.may_run.acquire(timeout=DEADLINE_SECONDS)
        return self.compute(list(payloads))

    def wait_until_started(self) -> None:
        assert self.started.acquire(timeout=DEADLINE_SECONDS)

    def run_freely(self) -> None:
        self.may_run.release(1000)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def batcher(device: Device) -> Iterator[Batcher[str, int, int]]:
    batcher = Batcher[str, int, int](device, max_batch_images=4, max_accepted_images=6)
    batcher.start()
    yield batcher
    device.run_freely()
    batcher.close()


def occupy(batcher: Batcher[str, int, int], device: Device) -> Future[Answer[int]]:
    """Submit one item and return once the device is busy with it."""
    answer = batcher.submit("busy", "me", 0)
    device.wait_until_started()
    return answer


def values(answers: Sequence[Future[Answer[int]]]) -> list[int]:
    return [answer.result(DEADLINE_SECONDS).value for answer in answers]


def test_the_next_batch_is_what_queued_while_the_last_one_ran(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    first = occupy(batcher, device)
    later = [batcher.submit("a", "me", n) for n in (1, 2, 3)]
    device.run_freely()
    assert values([first, *later]) == [0, 2, 4, 6]
    assert device.batches == [("busy", [0]), ("a", [1, 2, 3])]
    assert {answer.result().batch_images for answer in later} == {3}


def test_a_lone_item_does_not_wait_for_company(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    device.run_freely()
    assert values([batcher.submit("a", "me", 21)]) == [42]


def test_the_key_whose_turn_it_is_takes_its_other_items_along(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    occupy(batcher, device)
    answers = [
        batcher.submit(key, "me", n)
        for key, n in [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("c", 5)]
    ]
    device.run_freely()
    assert values(answers) == [2, 4, 6, 8, 10]
    assert device.batches[1:] == [("a", [1, 3]), ("b", [2, 4]), ("c", [5])]


def test_a_batch_has_at_most_the_largest_size_and_a_busy_key_does_not_starve_another(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    occupy(batcher, device)
    answers = [batcher.submit("a", "me", n) for n in range(3)]
    answers.append(batcher.submit("b", "me", 10))
    answers += [batcher.submit("a", "me", n) for n in range(3, 7)]
    device.run_freely()
    wait(answers, DEADLINE_SECONDS)
    assert device.batches[1:] == [("a", [0, 1, 2, 3]), ("b", [10]), ("a", [4, 5, 6])]


def test_a_model_that_floods_the_queue_does_not_starve_another_of_its_backbone(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    occupy(batcher, device)
    flood = [batcher.submit("a", "flood", n) for n in range(40)]
    other = batcher.submit("a", "other", 100)
    device.run_freely()
    assert values([*flood, other])[-1] == 200
    assert 100 in device.batches[1][1]


def test_a_cancelled_item_is_dropped_before_the_forward_pass(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    occupy(batcher, device)
    kept, dropped = batcher.submit("a", "me", 1), batcher.submit("a", "me", 2)
    assert dropped.cancel()
    device.run_freely()
    assert values([kept]) == [2]
    assert device.batches[1:] == [("a", [1])]


def test_a_queue_of_cancelled_items_does_not_stop_the_thread(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    busy = occupy(batcher, device)
    assert batcher.submit("a", "me", 1).cancel()
    device.run_freely()
    assert values([busy]) == [0]
    assert values([batcher.submit("b", "me", 5)]) == [10]


def test_an_item_with_its_own_error_fails_alone(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    device.compute = lambda numbers: [ModelUnhealthy("sick") if n == 2 else 2 * n for n in numbers]
    occupy(batcher, device)
    answers = [batcher.submit("a", "me", n) for n in (1, 2, 3)]
    device.run_freely()
    assert values([answers[0], answers[2]]) == [2, 6]
    with pytest.raises(ModelUnhealthy, match="sick"):
        answers[1].result(DEADLINE_SECONDS)


def test_a_batch_that_raises_is_halved_until_only_the_culprit_fails(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    def compute(numbers: list[int]) -> list[int]:
        if 3 in numbers:
            raise ValueError("three")
        return [2 * n for n in numbers]

    device.compute = compute
    occupy(batcher, device)
    answers = [batcher.submit("a", "me", n) for n in (1, 2, 3, 4)]
    device.run_freely()
    assert values([answers[n] for n in (0, 1, 3)]) == [2, 4, 8]
    with pytest.raises(ValueError, match="three"):
        answers[2].result(DEADLINE_SECONDS)
    assert values([batcher.submit("a", "me", 7)]) == [14]


def test_room_is_reserved_as_a_whole_and_given_back(batcher: Batcher[str, int, int]) -> None:
    with ExitStack() as held:
        held.enter_context(batcher.reserve(4, "a"))
        with pytest.raises(InferenceOverloaded) as caught, batcher.reserve(3, "b"):
            pass
        assert caught.value.facts == {"queued": 4, "limit": 6, "retry_after_seconds": 1}
        held.enter_context(batcher.reserve(2, "b"))
        assert batcher.accepted_images == 6
    with batcher.reserve(6, "a"):
        pass
    assert batcher.accepted_images == 0


def test_closing_answers_what_was_accepted_and_takes_nothing_more(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    first = occupy(batcher, device)
    queued = [batcher.submit(key, "me", n) for key, n in [("a", 1), ("b", 2), ("a", 3)]]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    device.run_freely()
    closing.join(DEADLINE_SECONDS)
    assert not closing.is_alive()
    assert values([first, *queued]) == [0, 2, 4, 6]
    with pytest.raises(InferenceUnavailable):
        batcher.submit("a", "me", 4)


def test_times_of_queue_and_forward_are_told_apart(
    batcher: Batcher[str, int, int], device: Device
) -> None:
    started = time.monotonic()
    first = occupy(batcher, device)
    second = batcher.submit("a", "me", 1)
    time.sleep(_HELD_SECONDS)  # the first one computes, the second one waits for it
    device.run_freely()
    computed, waited = first.result(DEADLINE_SECONDS), second.result(DEADLINE_SECONDS)
    assert computed.forward_seconds >= _HELD_SECONDS
    assert waited.queue_seconds >= _HELD_SECONDS
    assert computed.queue_seconds + computed.forward_seconds <= time.monotonic() - started
