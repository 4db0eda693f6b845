"""An HTTP load generator: raw HTTP/1.1 over kept connections, one event loop.

Two kinds of load. Closed: each connection sends its next request when its answer is there; that
finds the throughput. Open: requests have times of their own (a Poisson process drawn beforehand),
whatever the answers do, and a latency counts from the time at which a request was to be sent: what
waits for a free connection waits visibly (no coordinated omission).

It reports the processor time that it took itself, since it runs on the cores that it measures.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_SECONDS = 60.0

#: Gives the n-th request as its head and its body; see `post`.
Requests = Callable[[int], tuple[bytes, bytes]]
#: Says what is wrong with the n-th answer, given its body; None if nothing is.
Check = Callable[[int, bytes], str | None]


def _fine(_number: int, _body: bytes) -> None:
    pass


def post(path: str, body: bytes, media_type: str = "image/jpeg") -> tuple[bytes, bytes]:
    """Return a POST request as head and body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


@dataclass(frozen=True)
class Load:
    """What a load gave.

    Args:
        answered: Answers of status 200 that passed the check.
        failures: What was wrong with the others.
        latencies_seconds: Of those answered, from the intended time on, ascending.
        wall_seconds: From the first intended time to the last answer.
        own_seconds: Processor time of this process meanwhile.
        service_seconds: Processor time of the service's processes by name, where it was asked for.
    """

    answered: int
    failures: list[str]
    latencies_seconds: list[float]
    wall_seconds: float
    own_seconds: float
    service_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answered / self.wall_seconds

    @property
    def processor_ms(self) -> float:
        """Processor time of the service for one request."""
        return sum(self.service_seconds.values()) / self.answered * 1e3

    def quantile_ms(self, fraction: float) -> float:
        """Return the latency that this fraction of answers does not exceed."""
        last = len(self.latencies_seconds) - 1
        return self.latencies_seconds[min(last, int(fraction * len(self.latencies_seconds)))] * 1e3

    def as_json(self) -> dict[str, Any]:
        """Return the figures, rounded."""
        return {
            "requests": self.answered + len(self.failures),
            "errors": len(self.failures),
            "first_errors": self.failures[:3],
            "per_second": round(self.per_second, 1),
            "p50_ms": round(self.quantile_ms(0.5), 1),
            "p99_ms": round(self.quantile_ms(0.99), 1),
            "max_ms": round(self.latencies_seconds[-1] * 1e3, 1),
            "mean_ms": round(statistics.mean(self.latencies_seconds) * 1e3, 1),
            "generator_cores": round(self.own_seconds / self.wall_seconds, 3),
            "processor_ms_per_request": {
                name: round(seconds / self.answered * 1e3, 2)
                for name, seconds in self.service_seconds.items()
            },
        }


def closed(
    port: int,
    requests: Requests,
    *,
    connections: int,
    seconds: float,
    check: Check = _fine,
    until: Callable[[], bool] | None = None,
) -> Load:
    """Send as fast as answers come for `seconds`, or until a condition holds."""
    ends = time.perf_counter() + seconds

    def times() -> Iterator[float]:
        while time.perf_counter() < ends and not (until is not None and until()):
            yield time.perf_counter()

    return asyncio.run(_run(port, requests, times(), connections, check))


def opened(
    port: int,
    requests: Requests,
    *,
    rate: float,
    connections: int,
    seconds: float,
    check: Check = _fine,
) -> Load:
    """Send `rate` requests a second for `seconds`, at the times of a Poisson process."""
    generator = random.Random(0)

    def times() -> Iterator[float]:
        started = time.perf_counter()
        at = generator.expovariate(rate)
        while at < seconds:
            yield started + at
            at += generator.expovariate(rate)

    return asyncio.run(_run(port, requests, times(), connections, check))


async def _run(
    port: int, requests: Requests, times: Iterator[float], connections: int, check: Check
) -> Load:
    latencies: list[float] = []
    failures: list[str] = []
    numbered = enumerate(times)
    own, started = time.process_time(), time.perf_counter()

    async def client() -> None:
        connection = _Connection(port)
        for number, intended in numbered:
            ahead = intended - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            wrong = await _wrong_with(
                connection, requests(number), lambda body, number=number: check(number, body)
            )
            if wrong is None:
                latencies.append(time.perf_counter() - intended)
            else:
                failures.append(wrong)
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    wall_seconds = time.perf_counter() - started
    own_seconds = time.process_time() - own
    if not latencies:
        raise RuntimeError(f"not one request was answered: {failures[:3]}")
    return Load(len(latencies), failures, sorted(latencies), wall_seconds, own_seconds)


async def _wrong_with(
    connection: _Connection, request: tuple[bytes, bytes], check: Callable[[bytes], str | None]
) -> str | None:
    """Return what is wrong with the answer to a request, if anything."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            status, body = await connection.ask(*request)
    except (OSError, EOFError, TimeoutError) as error:
        connection.close()
        return repr(error)
    if status != 200:
        return f"{status} {body[:200]!r}"
    return check(body)


class _Connection:
    """One kept connection to this machine, opened when it is needed; answers have a length."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Send one request; return the answer's status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.writelines((head, body))
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = answer.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        return int(answer[9:12]), await reader.readexactly(int(length))

    def close(self) -> None:
        """Hang up; the next request connects anew."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None
