"""Whose turn is next, how much room one owner may hold, and threads that work in turns."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from models_cache.errors import InferenceOverloaded
from models_cache.fair_pool import FairPool
from models_cache.room import Room
from models_cache.turns import Turns

DEADLINE_SECONDS = 20


def everything(_: object) -> bool:
    return True


def test_keys_and_owners_take_turns_and_owners_keep_their_order() -> None:
    turns = Turns[str, int]()
    for number in range(5):
        turns.put("resnet", "flood", number)
    turns.put("resnet", "other", 10)
    turns.put("mobilenet", "third", 20)
    turns.put("resnet", "other", 11)
    taken = []
    while turns:
        taken.append(turns.take(3, everything))
    assert taken == [[0, 10, 1], [20], [11, 2, 3], [4]]


def test_what_is_not_wanted_is_dropped_and_takes_no_place() -> None:
    turns = Turns[str, int]()
    for number in range(10):
        turns.put("a", "me", number)
    turns.put("b", "me", 11)
    assert turns.take(2, lambda number: number > 5) == [6, 7]
    assert turns.take(2, lambda number: number != 11) == [8, 9]
    assert turns.take(2, everything) == []
    assert not turns


def test_one_owner_holds_at_most_half_and_a_newcomer_finds_room() -> None:
    room = Room(12)
    with ExitStack() as held:
        for _ in range(6):
            held.enter_context(room.reserve(1, "flood"))
        with pytest.raises(InferenceOverloaded) as caught, room.reserve(1, "flood"):
            pass
        assert caught.value.queued == 6
        held.enter_context(room.reserve(3, "other"))
        held.enter_context(room.reserve(3, "third"))
        with pytest.raises(InferenceOverloaded), room.reserve(1, "fourth"):
            pass
    assert room.images == 0
    with room.reserve(12, "alone"):  # a request may fill it, if there is nobody
        pass


def test_a_refusal_says_to_come_back_after_as_long_as_others_stayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, now = Room(1), [0.0]
    monkeypatch.setattr("models_cache.room.time.monotonic", lambda: now[0])
    for _ in range(50):
        with room.reserve(1, "me"):
            now[0] += 7.5
    with (
        room.reserve(1, "me"),
        pytest.raises(InferenceOverloaded) as caught,
        room.reserve(1, "you"),
    ):
        pass
    assert caught.value.retry_after_seconds == 8


def test_a_pool_works_in_turns_and_drops_what_was_cancelled() -> None:
    pool, started, may_go = FairPool(1, "work"), threading.Event(), threading.Event()
    order: list[str] = []

    def occupy() -> None:
        started.set()
        assert may_go.wait(DEADLINE_SECONDS)

    pool.submit("flood", occupy)
    assert started.wait(DEADLINE_SECONDS)
    flood = [pool.submit("flood", lambda n=n: order.append(f"flood {n}")) for n in range(3)]  # type: ignore[misc]
    other = pool.submit("other", lambda: order.append("other"))
    assert flood[1].cancel()
    may_go.set()
    other.result(DEADLINE_SECONDS)
    flood[2].result(DEADLINE_SECONDS)
    assert order == ["flood 0", "other", "flood 2"]
    failing = pool.submit("me", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(DEADLINE_SECONDS)
    pool.close()
