from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from models_cache.loaded import LoadedCache, Pinned, SharedLoads

DEADLINE_SECONDS = 20


class Loader:
    """Loads the key as its own value, 10 bytes each, and remembers every load."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.failures = 0
        self.gate: threading.Event | None = None
        self.started = threading.Event()

    def __call__(self, key: str) -> str:
        self.loads.append(key)
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_SECONDS)
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is gone")
        return key


def cache_of(loader: Loader, capacity_bytes: int = 20) -> LoadedCache[str, str]:
    return LoadedCache(loader, size_of=lambda _: 10, capacity_bytes=capacity_bytes)


def use(cache: LoadedCache[str, str], *keys: str) -> None:
    for key in keys:
        with cache.pin(key) as value:
            assert value == key


def test_a_loaded_value_is_not_loaded_again() -> None:
    loader = Loader()
    use(cache_of(loader), "a", "a", "b", "a")
    assert loader.loads == ["a", "b"]


def test_the_least_recently_used_value_is_evicted_first() -> None:
    loader = Loader()
    cache = cache_of(loader)
    use(cache, "a", "b", "a", "c")
    assert cache.keys() == ["a", "c"]
    assert cache.loaded_bytes == 20


def test_a_pinned_value_is_not_evicted_until_it_is_released() -> None:
    cache = cache_of(Loader(), capacity_bytes=10)
    pinned = cache.pin("a")
    use(cache, "b", "c")
    assert cache.keys() == ["a", "c"]
    pinned.release()
    assert cache.keys() == ["c"]


def test_everything_in_use_may_pass_the_bound_and_it_is_met_again_afterwards() -> None:
    cache = cache_of(Loader(), capacity_bytes=20)
    pins = [cache.pin(key) for key in "abcd"]
    assert cache.loaded_bytes == 40
    for pin in pins:
        pin.release()
    assert cache.loaded_bytes == 20
    assert cache.keys() == ["c", "d"]


def test_releasing_twice_counts_once() -> None:
    cache = cache_of(Loader(), capacity_bytes=10)
    first, second = cache.pin("a"), cache.pin("a")
    first.release()
    first.release()
    use(cache, "b")
    assert "a" in cache.keys()  # noqa: SIM118 - keys() is a list, not a mapping's view
    second.release()


def test_a_value_larger_than_the_bound_stays_while_it_is_the_newest() -> None:
    loader = Loader()
    cache = cache_of(loader, capacity_bytes=5)
    use(cache, "a", "a", "b", "b")
    assert loader.loads == ["a", "b"]


def test_concurrent_callers_share_one_load() -> None:
    loader = Loader()
    loader.gate = threading.Event()
    cache = cache_of(loader)
    with ThreadPoolExecutor(8) as pool:
        pins = [pool.submit(cache.pin, "a") for _ in range(8)]
        assert loader.started.wait(DEADLINE_SECONDS)
        assert cache.pin_if_loaded("a") is None
        loader.gate.set()
        assert {pin.result(DEADLINE_SECONDS).value for pin in pins} == {"a"}
    assert loader.loads == ["a"]


def test_a_failed_load_reaches_all_waiters_and_the_next_caller_tries_again() -> None:
    loader = Loader()
    loader.gate, loader.failures = threading.Event(), 1
    cache = cache_of(loader)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.pin, "a")
        assert loader.started.wait(DEADLINE_SECONDS)
        second = pool.submit(cache.pin, "a")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while cache._entries["a"].pins < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        loader.gate.set()
        for pin in (first, second):
            with pytest.raises(OSError, match="the disk is gone"):
                pin.result(DEADLINE_SECONDS)
    assert loader.loads == ["a"]
    assert cache.loaded_bytes == 0
    use(cache, "a")
    assert cache.keys() == ["a"]


def test_loads_of_different_keys_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2, timeout=DEADLINE_SECONDS)

    def load(key: str) -> str:
        both.wait()
        return key

    cache = LoadedCache(load, size_of=len, capacity_bytes=100)
    with ThreadPoolExecutor(2) as pool:
        assert [pin.value for pin in pool.map(cache.pin, ["a", "b"])] == ["a", "b"]


def test_a_storm_of_pins_keeps_the_books_right() -> None:
    cache = cache_of(Loader(), capacity_bytes=30)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: use(cache, "abcdefgh"[n % 8], "abcdefgh"[n % 5]), range(400)))
    assert cache.loaded_bytes == 10 * len(cache.keys()) <= 30


@pytest.mark.parametrize("full", [False, True])
def test_pinning_costs_the_same_however_much_is_loaded(full: bool) -> None:
    def seconds(entries: int) -> float:
        cache = cache_of(Loader(), capacity_bytes=10 * (entries if full else 2 * entries))
        use(cache, *map(str, range(entries)))
        times = []
        for number in range(100):
            started = time.perf_counter()
            use(cache, f"new-{number}" if full else "0")
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(4000) < 20 * seconds(20)


class Shared:
    """A cache behind `SharedLoads`, with as many loading threads as given."""

    def __init__(self, loader: Loader, threads: int, capacity_bytes: int = 20) -> None:
        self.cache = cache_of(loader, capacity_bytes)
        self.pool = ThreadPoolExecutor(threads)
        self.loads = SharedLoads(self.cache.pin_if_loaded, self._load)

    async def _load(self, key: str) -> Pinned[str]:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.cache.pin, key)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
            await asyncio.sleep(0.001)


def gated_loader() -> tuple[Loader, threading.Event]:
    loader, gate = Loader(), threading.Event()
    loader.gate = gate
    return loader, gate


def test_those_who_await_a_load_hold_no_thread() -> None:
    async def story() -> None:
        loader, gate = gated_loader()
        shared = Shared(loader, threads=2)
        waiting = [asyncio.create_task(shared.loads.pin("slow")) for _ in range(8)]
        await eventually(lambda: loader.loads == ["slow"])
        loader.gate = None
        async with asyncio.timeout(DEADLINE_SECONDS):
            other = await shared.loads.pin("other")
        assert other.value == "other"
        assert not any(task.done() for task in waiting)
        gate.set()
        assert {pin.value for pin in await asyncio.gather(*waiting)} == {"slow"}
        assert loader.loads == ["slow", "other"]

    asyncio.run(story())


def test_a_shared_value_stays_until_the_last_who_awaited_it_released_it() -> None:
    async def story() -> None:
        loader = Loader()
        shared = Shared(loader, threads=1, capacity_bytes=0)
        pins = await asyncio.gather(*(shared.loads.pin("a") for _ in range(3)))
        for pin in pins:
            use(shared.cache, "b")
            assert shared.cache.keys() == ["a", "b"]
            pin.release()
        assert shared.cache.keys() == ["b"]
        assert loader.loads.count("a") == 1

    asyncio.run(story())


def test_a_failed_shared_load_reaches_all_who_await_it_and_the_next_tries_again() -> None:
    async def story() -> None:
        loader = Loader()
        loader.failures = 1
        shared = Shared(loader, threads=1)
        first = [asyncio.create_task(shared.loads.pin("a")) for _ in range(3)]
        outcomes = await asyncio.gather(*first, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the disk is gone"] * 3
        assert (await shared.loads.pin("a")).value == "a"
        assert loader.loads == ["a", "a"]

    asyncio.run(story())


@pytest.mark.parametrize("failures", [0, 1])
def test_a_load_that_nobody_awaits_any_more_ends_and_holds_nothing(failures: int) -> None:
    complaints: list[dict[str, object]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        loader, gate = gated_loader()
        loader.failures = failures
        shared = Shared(loader, threads=1, capacity_bytes=0)
        waiting = asyncio.create_task(shared.loads.pin("a"))
        await eventually(loader.started.is_set)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        gate.set()
        await eventually(lambda: not shared.loads._loads)
        assert shared.cache.keys() == ["a"] * (1 - failures)
        use(shared.cache, "b")
        assert shared.cache.keys() == ["b"]

    asyncio.run(story())
    assert complaints == []
