"""Clients that are slow, silent or many: each wait ends, and whoever is quick is served."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.connection_limits import ConnectionLimits
from service.free_port import free_port
from service.http_server import Listener
from service.middleware import Receive, Scope, Send
from tests import databases, images
from tests.waiting import until

pytestmark = pytest.mark.slow

_UPLOAD = b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nPK\3\4"
_LONG_UPLOAD = _UPLOAD.replace(b"9999", b"999999")
_TOO_MANY = "too-many-connections"


@dataclass(frozen=True)
class Api:
    """An api process without its neighbours."""

    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def open_files(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())


@contextmanager
def api(folder: Path, open_files: int | None = None, **settings: str) -> Iterator[Api]:
    """Run `graft api`, with so many open files at most."""
    port = free_port("127.0.0.1")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    environment = {
        **clean,
        "GRAFT_DATA_DIR": str(folder / "data"),
        "GRAFT_DATABASE_URL": databases.database_url(folder),
        "GRAFT_PORT": str(port),
        "GRAFT_BALLAST_BYTES": str(1 << 20),
        **{f"GRAFT_{name}": value for name, value in settings.items()},
    }
    limit = "" if open_files is None else f"ulimit -n {open_files}; "
    command = [sys.executable, "-P", "-m", "service.cli.main", "api"]
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f'{limit}exec "$@"', "sh", *command],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    started = Api(port, process, log_path)
    try:
        until(lambda: answers(started), 30.0)
        yield started
        with started.http() as http:
            assert http.get("/healthz").status_code == 200
        assert "Traceback" not in log_path.read_text()
    finally:
        process.kill()
        process.wait()


def answers(started: Api) -> bool:
    assert started.process.poll() is None, started.log_path.read_text()
    try:
        with started.http() as http:
            return http.get("/healthz").status_code == 200
    except httpx2.HTTPError:
        return False


def test_few_open_files_are_enough_beside_150_uploads_that_stop(tmp_path: Path) -> None:
    with api(tmp_path, open_files=128) as started, ExitStack() as half_sent:
        for _ in range(150):
            connection = half_sent.enter_context(started.connect())
            connection.sendall(_UPLOAD)
        with started.http() as http:
            # At first each connection may have a request that is not refused yet
            until(lambda: http.get("/v1/jobs").status_code == 200, 20.0)
            for _ in range(20):
                assert http.get("/v1/jobs").status_code == 200
        assert started.open_files() < 128
        assert "too-many-" in received(connection)


def test_silent_connections_make_room_for_new_ones(tmp_path: Path) -> None:
    with api(tmp_path, MAX_CONNECTIONS="20") as started, ExitStack() as silent:
        for _ in range(100):
            silent.enter_context(started.connect())
        with started.http() as http:
            assert http.get("/v1/jobs").status_code == 200
        until(lambda: started.open_files() < 60, 10.0)


def test_those_who_read_no_answer_are_busy() -> None:
    """Closed while its answer is unsent, a connection would stay open beyond the bound."""
    limits = ConnectionLimits(
        connections=16, uploads=8, head_seconds=60, grace_seconds=60, min_bytes_per_second=1
    )

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(16 << 20)})

    async def open_at_the_end() -> int:
        listener, state, loop = Listener(limits), ServerState(), asyncio.get_running_loop()
        config = Config(answer, log_config=None)
        config.load()
        server = await loop.create_server(
            lambda: listener.protocol(config, state, {}, loop), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        with ExitStack() as clients:
            for number in range(40):
                client = clients.enter_context(socket.create_connection(address))
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" if number < 16 else b"")
                await asyncio.sleep(0.1)
            found = len(state.connections)
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0.01)
        server.close()
        return found

    assert asyncio.run(open_at_the_end()) == limits.connections


def test_who_comes_when_all_connections_are_busy_is_told_so(tmp_path: Path) -> None:
    with (
        api(tmp_path, MAX_CONNECTIONS="16", MAX_UPLOADS="16") as started,
        ExitStack() as busy,
    ):
        connections = [busy.enter_context(started.connect()) for _ in range(16)]
        for connection in connections[:8]:  # no more may upload than half of the connections
            connection.sendall(_UPLOAD)
        dataset = _dataset(started, connections[8])
        for connection in connections[8:]:
            connection.sendall(_waiting_for(dataset))
        until(lambda: _TOO_MANY in _from_another(started), 20.0)


def test_uploads_beyond_the_bound_are_told_so_and_small_bodies_are_not(tmp_path: Path) -> None:
    archive = images.zip_bytes(images.class_folders(per_class=20))
    assert len(archive) > len(_LONG_UPLOAD)
    with (
        api(tmp_path, MAX_CONNECTIONS="16", MAX_UPLOADS="2") as started,
        ExitStack() as stopped,
        started.http() as http,
    ):
        for _ in range(2):
            stopped.enter_context(started.connect()).sendall(_LONG_UPLOAD)
        until(lambda: http.post("/v1/datasets", content=archive).status_code == 503, 10.0)
        for body in (archive, iter([archive])):  # of a known length, and in chunks
            refused = http.post("/v1/datasets", content=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "too-many-uploads")
            assert refused.headers["retry-after"] == "2"
        assert http.post("/v1/jobs", json={"dataset": "ds_absent"}).status_code == 404
        assert http.get("/v1/jobs").status_code == 200
        stopped.close()
        until(lambda: http.post("/v1/datasets", content=archive).status_code == 202, 10.0)


def _dataset(started: Api, connection: socket.socket) -> str:
    """Upload a data set that no worker will check, over this connection."""
    body = images.zip_bytes(images.class_folders(per_class=2))
    head = f"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    answer = ""
    while not (found := re.search(r'"id": ?"(ds_\w+)"', answer)):
        more = connection.recv(1 << 16)
        assert more, answer
        answer += more.decode()
    return found[1]


def _waiting_for(dataset: str) -> bytes:
    body = f'{{"dataset": "{dataset}", "recipe": "scratch", "backbone": "squeezenet1_1"}}'
    return (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=100\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _from_another(started: Api) -> str:
    with started.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return received(connection)


def received(connection: socket.socket) -> str:
    """Return all that came until the other side closed."""
    data = bytearray()
    try:
        while more := connection.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return data.decode("latin-1")


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with api(tmp_path, SLOW_SECONDS="1") as started, started.connect() as connection:
        connection.sendall(request * 100)  # tens of megabytes: more than the kernel takes
        until(lambda: "an answer was read too slowly" in started.log_path.read_text(), 30.0)


def test_an_answer_that_is_read_slowly_but_fast_enough_comes_whole(tmp_path: Path) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"
    with (
        api(tmp_path, SLOW_SECONDS="3") as started,
        started.connect() as connection,
    ):
        connection.sendall((request + b"\r\n") * 60 + request + b"Connection: close\r\n\r\n")
        data = bytearray()
        while more := connection.recv(1 << 16):
            data += more
            time.sleep(0.03)
    assert data.count(b"HTTP/1.1 200 OK") == 61


def test_a_stream_of_events_is_no_slow_client(tmp_path: Path) -> None:
    with api(tmp_path, SLOW_SECONDS="1", HEAD_SECONDS="1") as started:
        with started.connect() as uploading, started.http() as http:
            dataset = _dataset(started, uploading)
            job = http.post(
                "/v1/jobs",
                json={"dataset": dataset, "recipe": "scratch", "backbone": "squeezenet1_1"},
            ).json()["id"]
        with started.connect() as connection:
            connection.sendall(
                f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n"
                "Accept: text/event-stream\r\n\r\n".encode()
            )
            connection.settimeout(0.5)
            assert b"200 OK" in connection.recv(1 << 16)
            ends = time.monotonic() + 4.0
            while time.monotonic() < ends:
                with suppress(TimeoutError):
                    assert connection.recv(1 << 16), "the stream was cut"
