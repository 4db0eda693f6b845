"""Healthy requests beside 500 slow connections: their p99, as a ratio to that without.

`python benchmarks/slow_connections.py [--rounds N] [--in-step] [--json FILE]`. A third of the slow
ones says nothing, a third sends a head and a third a body, a byte each half second; those that are
closed come again half a second later. Each begins at a time of its own within a step, or all at
once (`--in-step`), as an attacker's would. They are in a process of their own. Healthy requests are
sent on a fixed schedule, so that a slow answer delays no later request. Rounds without and with the
slow ones take turns; the ratio is that of the medians of their p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from service.free_port import free_port

_SLOW = 500
_RATE = 40.0  # healthy requests per second
_SECONDS = 15.0
_STEP_SECONDS = 0.5
_CONNECTED_SECONDS = 4.0  # until all are there
_GONE_SECONDS = 2.0
_HEALTHY = b"GET /v1/jobs?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_STARTS = (
    b"",
    b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nPK\3\4",
)


@dataclass(frozen=True)
class Healthy:
    """What healthy clients saw: seconds of each answer, and how many failed."""

    seconds: list[float]
    failed: int

    @property
    def p99_seconds(self) -> float:
        """The 99th percentile."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


@contextmanager
def running_api() -> Iterator[int]:
    """Run an api process alone and yield its port."""
    port = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="graft-slow-") as folder:
        environment = {**os.environ, "GRAFT_DATA_DIR": folder, "GRAFT_PORT": str(port)}
        with (Path(folder) / "log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "service.cli.main", "api"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_listening(port)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def wait_until_listening(port: int) -> None:
    """Return when something listens at a port; raise after a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


async def slow(port: int, start: bytes) -> None:
    """Be a slow client until cancelled; connect again when closed."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(start)
                while not await _is_over(reader):
                    if start:
                        writer.write(b"x")
            finally:
                writer.close()
        await asyncio.sleep(_STEP_SECONDS)


async def _is_over(reader: asyncio.StreamReader) -> bool:
    """Wait a step; tell whether the service answered, that is, whether it closes."""
    try:
        async with asyncio.timeout(_STEP_SECONDS):
            await reader.read(1)
    except TimeoutError:
        return False
    return True


async def healthy(port: int) -> Healthy:
    """Ask at a fixed rate and return how long each answer took."""
    seconds: list[float] = []
    failed = 0

    async def ask(at: float) -> None:
        nonlocal failed
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(_HEALTHY)
                answer = await reader.read()
                writer.close()
        except OSError:
            answer = b""
        failed += not answer.startswith(b"HTTP/1.1 200")
        seconds.append(time.monotonic() - at)

    started = time.monotonic() + 0.1
    await asyncio.gather(*(ask(started + i / _RATE) for i in range(int(_RATE * _SECONDS))))
    return Healthy(seconds, failed)


async def all_slow(port: int, spread_seconds: float) -> None:
    """Be every slow client, until killed."""

    async def begin(number: int) -> None:
        await asyncio.sleep(spread_seconds * number / _SLOW)
        await slow(port, _STARTS[number % len(_STARTS)])

    await asyncio.gather(*map(begin, range(_SLOW)))


def measure(port: int, rounds: int, spread_seconds: float) -> tuple[list[Healthy], list[Healthy]]:
    """Return what healthy clients see without and with slow ones, in each round."""
    asyncio.run(healthy(port))  # warm
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(asyncio.run(healthy(port)))
        command = [sys.executable, __file__, "--slow", str(port), str(spread_seconds)]
        others = subprocess.Popen(command)
        try:
            time.sleep(_CONNECTED_SECONDS)
            beside.append(asyncio.run(healthy(port)))
        finally:
            others.kill()
            others.wait()
        time.sleep(_GONE_SECONDS)
    return alone, beside


def p99_of(rounds: list[Healthy]) -> float:
    """Return the median of the rounds, in seconds."""
    return median(each.p99_seconds for each in rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-step", action="store_true", help="all slow clients move at once")
    parser.add_argument("--slow", nargs=2, help=argparse.SUPPRESS)  # for its own child
    arguments = parser.parse_args()
    if arguments.slow is not None:
        port_text, spread_text = arguments.slow
        asyncio.run(all_slow(int(port_text), float(spread_text)))
    with running_api() as port:
        spread_seconds = 0.0 if arguments.in_step else _STEP_SECONDS
        alone, beside = measure(port, arguments.rounds, spread_seconds)
    for before, with_them in zip(alone, beside, strict=True):
        seen = (before.p99_seconds * 1e3, with_them.p99_seconds * 1e3)
        print("p99 alone {:.1f} ms, beside {:.1f} ms".format(*seen))
    ratio, failed = p99_of(beside) / p99_of(alone), sum(each.failed for each in beside)
    records = [
        {
            "name": "slow-connections",
            "value": round(ratio, 2),
            "target": "< 2",
            "ok": ratio < 2,
        },
        {
            "name": "slow-connections-refused",
            "value": failed,
            "target": "0",
            "ok": failed == 0,
        },
    ]
    text = json.dumps(records, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
