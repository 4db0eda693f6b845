"""Healthy requests beside 500 slow connections: their p99, as a ratio to that without.

`python benchmarks/slow_connections.py [--json FILE]`. A third of the slow ones says nothing, a
third sends a head and a third a body, a byte each half second; those that are closed come again.
They are in a process of their own. Healthy requests are sent on a fixed schedule, so that a slow
answer delays no later request.
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

from service.free_port import free_port

_SLOW = 500
_RATE = 40.0  # healthy requests per second
_SECONDS = 15.0
_STEP_SECONDS = 0.5
_CONNECTED_SECONDS = 4.0  # until all are there
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


async def all_slow(port: int) -> None:
    """Be every slow client, until killed."""
    await asyncio.gather(*(slow(port, _STARTS[i % len(_STARTS)]) for i in range(_SLOW)))


def measure(port: int) -> tuple[Healthy, Healthy]:
    """Return what healthy clients see without and with slow ones."""
    asyncio.run(healthy(port))  # warm
    alone = asyncio.run(healthy(port))
    others = subprocess.Popen([sys.executable, __file__, "--slow", str(port)])
    try:
        time.sleep(_CONNECTED_SECONDS)
        return alone, asyncio.run(healthy(port))
    finally:
        others.kill()
        others.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--slow", type=int, help=argparse.SUPPRESS)  # port; for its own child
    arguments = parser.parse_args()
    if arguments.slow is not None:
        asyncio.run(all_slow(arguments.slow))
    with running_api() as port:
        alone, beside = measure(port)
    ratio = beside.p99_seconds / alone.p99_seconds
    print(f"p99 alone {alone.p99_seconds * 1e3:.1f} ms, beside {beside.p99_seconds * 1e3:.1f} ms")
    records = [
        {
            "name": "slow-connections",
            "value": round(ratio, 2),
            "target": "< 2",
            "ok": ratio < 2,
        },
        {
            "name": "slow-connections-refused",
            "value": beside.failed,
            "target": "0",
            "ok": beside.failed == 0,
        },
    ]
    text = json.dumps(records, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
