"""The api's way to inference: which version is meant, kept connections, clients that hang up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import uvicorn
from sqlalchemy import Connection

from jobs.errors import ModelNotFound
from jobs.store import jobs, models
from jobs.store.database import Database
from jobs.store.jobs import NewJob
from jobs.store.tables import DEFAULT_PROJECT
from models_cache.errors import InferenceUnavailable
from service.app import create_app
from service.http_connections import HttpConnections
from service.settings import Settings
from service.version_finder import VersionFinder
from tests.waiting import until

DEADLINE_SECONDS = 20


def publish(database: Database, name: str) -> models.Version:
    new = models.NewVersion(
        name=name,
        artifact_digest="0" * 64,
        files={},
        task="classification",
        architecture="resnet18",
        classes=["ant", "bee"],
        metrics={},
        project=DEFAULT_PROJECT,
    )
    with database.write() as connection:
        return models.publish(connection, new, promote=True)


def test_a_promotion_is_seen_by_the_first_request_behind_it(database: Database) -> None:
    for _ in range(2):
        publish(database, "pets")
    finder = VersionFinder(database)
    another = Database(str(database.url))

    async def story() -> None:
        for turn in range(200):
            number = 1 + turn % 2
            writer = database if turn % 3 else another  # of this api, or of another process
            with writer.write() as connection:
                models.set_alias(connection, "pets", "default", number, project=DEFAULT_PROJECT)
            for _ in range(2):
                assert (await finder.find("pets", DEFAULT_PROJECT)).version == number
        assert await finder.find("pets", DEFAULT_PROJECT) is await finder.find(
            "pets", DEFAULT_PROJECT
        )  # nothing was committed
        with database.write() as connection:
            models.remove(connection, "pets", DEFAULT_PROJECT)
        with pytest.raises(ModelNotFound):
            await finder.find("pets", DEFAULT_PROJECT)

    asyncio.run(story())
    another.close()


def test_requests_never_see_an_older_version_than_one_that_was_answered(
    database: Database,
) -> None:
    """Versions only rise here: what many readers find must rise, too, whatever the timing."""
    publish(database, "pets")
    finder, done = VersionFinder(database), threading.Event()

    def publish_more() -> None:
        for _ in range(60):
            publish(database, "pets")
        done.set()

    async def read() -> int:
        found = [0]
        while not done.is_set():
            with database.read() as connection:
                at_least = models.resolve(connection, "pets", None, DEFAULT_PROJECT).version
            found.append((await finder.find("pets", DEFAULT_PROJECT)).version)
            assert found[-1] >= max(at_least, found[-2])
        return (await finder.find("pets", DEFAULT_PROJECT)).version

    async def story() -> list[int]:
        return await asyncio.gather(*(read() for _ in range(4)))

    writer = threading.Thread(target=publish_more)
    writer.start()
    assert set(asyncio.run(story())) == {61}
    writer.join()


def test_requests_at_once_share_a_look_and_one_that_goes_takes_it_from_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(database, "pets")
    finder = VersionFinder(database)
    looks: list[str] = []
    read = finder.read

    def counted(reference: str, project: str) -> models.Version:
        looks.append(reference)
        return read(reference, project)

    monkeypatch.setattr(finder, "read", counted)

    async def story() -> None:
        asked = [asyncio.create_task(finder.find("pets", DEFAULT_PROJECT)) for _ in range(16)]
        await asyncio.sleep(0)
        asked[0].cancel()
        found = await asyncio.gather(*asked[1:])
        assert [version.version for version in found] == [1] * 15
        assert looks == ["pets"]
        absent = await asyncio.gather(
            *(finder.find("cats", DEFAULT_PROJECT) for _ in range(4)), return_exceptions=True
        )
        assert all(isinstance(error, ModelNotFound) for error in absent)
        assert looks == ["pets", "cats"]

    asyncio.run(story())


def test_what_is_remembered_outlives_commits_that_change_no_model(database: Database) -> None:
    publish(database, "pets")
    finder = VersionFinder(database)

    async def story() -> None:
        known = await finder.find("pets", DEFAULT_PROJECT)
        for turn in range(3):
            with database.write() as connection:
                new = NewJob(id=f"job_{turn}", type="download", spec={}, project=DEFAULT_PROJECT)
                jobs.accept(connection, new)
            assert await finder.find("pets", DEFAULT_PROJECT) is known

    asyncio.run(story())


def test_every_change_of_a_model_is_counted(database: Database) -> None:
    for _ in range(3):
        publish(database, "pets")
    changes: list[Callable[[Connection], object]] = [
        lambda c: models.set_alias(c, "pets", "x", 2, project=DEFAULT_PROJECT),
        lambda c: models.set_alias(c, "pets", "x", 1, project=DEFAULT_PROJECT),
        lambda c: models.remove_alias(c, "pets", "x", DEFAULT_PROJECT),
        lambda c: models.remove_version(c, "pets", 1, DEFAULT_PROJECT),
        lambda c: models.remove(c, "pets", DEFAULT_PROJECT),
    ]
    counted = [count(database)]
    for change in changes:
        with database.write() as connection:
            change(connection)
        counted.append(count(database))
    publish(database, "pets")
    counted.append(count(database))
    assert counted == sorted(set(counted))


def count(database: Database) -> int:
    with database.read() as connection:
        return models.changes(connection)


def test_a_candidate_is_found_as_soon_as_there_is_one(database: Database) -> None:
    for _ in range(2):
        publish(database, "pets")
    finder = VersionFinder(database)

    async def story() -> None:
        for _ in range(3):
            assert await finder.find_if_any("pets@shadow", DEFAULT_PROJECT) is None
        with database.write() as connection:
            models.set_alias(connection, "pets", "shadow", 2, project=DEFAULT_PROJECT)
        candidate = await finder.find_if_any("pets@shadow", DEFAULT_PROJECT)
        assert candidate is not None
        assert candidate.version == 2

    asyncio.run(story())


def test_a_commit_of_another_process_is_told_and_a_rollback_is_not(database: Database) -> None:
    publish(database, "a")
    before = database.last_commit()
    with suppress(ZeroDivisionError), database.write() as connection:
        models.set_alias(connection, "a", "x", 1, project=DEFAULT_PROJECT)
        raise ZeroDivisionError
    if database.is_sqlite:  # a server may tell of what came to nothing, and is then read again
        assert database.last_commit() == before
    before = database.last_commit()
    assert before is not None
    assert database.last_commit() == before
    code = (
        "import sys; from jobs.store.database import Database, utc_now; "
        "from jobs.store.tables import workers; from sqlalchemy import insert\n"
        "with Database(sys.argv[1]).write() as connection:\n"
        "    connection.execute(insert(workers).values("
        "id='w', host='h', pid=1, device='cpu', heartbeat_at=utc_now()))"
    )
    subprocess.run([sys.executable, "-c", code, str(database.url)], check=True, timeout=60)
    assert database.last_commit() != before


class Listener:
    """A server of one unix socket that answers by `answer(request)`, or not at all for None."""

    def __init__(self, path: Path, answer: Callable[[bytes], bytes | None]) -> None:
        self.path = path
        self.connections = 0
        self.hung_up = threading.Event()
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection):
            while request := connection.recv(1 << 20):
                answer = self._answer(request)
                if answer is not None:
                    connection.sendall(answer)
                    if b"close" in answer:
                        return
            self.hung_up.set()


def answer_of(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (more, len(body), body)


def ask(path: Path, times: int = 1, timeout_seconds: float = DEADLINE_SECONDS) -> list[bytes]:
    async def story() -> list[bytes]:
        connections = HttpConnections(f"unix://{path}")
        bodies = []
        for _ in range(times):
            answer = await connections.request("POST", "/predict", b"image", timeout_seconds)
            bodies.append(answer.body)
            await asyncio.sleep(0.01)  # a closed connection is noticed meanwhile
        connections.close()
        return bodies

    return asyncio.run(story())


def test_a_connection_is_kept_and_a_closed_one_is_replaced(tmp_path: Path) -> None:
    kept = Listener(tmp_path / "kept", lambda _: answer_of(b"yes"))
    assert ask(kept.path, 5) == [b"yes"] * 5
    assert kept.connections == 1
    kept.close()
    closing_it = Listener(tmp_path / "closed", lambda _: answer_of(b"no", b"Connection: close\r\n"))
    assert ask(closing_it.path, 3) == [b"no"] * 3
    assert closing_it.connections == 3
    closing_it.close()


def test_a_restarted_server_is_asked_again_over_a_new_connection(tmp_path: Path) -> None:
    async def story() -> None:
        listener = Listener(tmp_path / "s", lambda _: answer_of(b"first"))
        connections = HttpConnections(f"unix://{listener.path}")
        assert (await connections.request("GET", "/", b"", DEADLINE_SECONDS)).body == b"first"
        listener.close()
        listener = Listener(tmp_path / "s", lambda _: answer_of(b"second"))
        (idle,) = connections._idle
        idle.writer.transport.abort()
        assert (await connections.request("GET", "/", b"", DEADLINE_SECONDS)).body == b"second"
        connections.close()
        listener.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nclose",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nclose",
        b"x" * 100_000 + b"close",
        None,
    ],
)
def test_an_answer_that_is_none_is_unavailable(tmp_path: Path, answer: bytes | None) -> None:
    listener = Listener(tmp_path / "s", lambda _: answer)
    with pytest.raises(InferenceUnavailable):
        ask(listener.path, timeout_seconds=0.3 if answer is None else DEADLINE_SECONDS)
    listener.close()
    with pytest.raises(InferenceUnavailable):
        ask(tmp_path / "nobody")


@contextmanager
def running_api(settings: Settings) -> Iterator[str]:
    """Run the api in a thread; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, DEADLINE_SECONDS)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_hangs_up_takes_its_images_out_of_the_queue(
    database: Database, tmp_path: Path
) -> None:
    publish(database, "pets")
    inference = Listener(tmp_path / "s", lambda _: None)
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=str(database.url),
        inference_url=f"unix://{inference.path}",
    )
    with running_api(settings) as url:
        with httpx2.Client(base_url=url, timeout=1, trust_env=False) as client:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/models/pets/predict", content=b"an image")
            assert inference.connections == 1
        assert inference.hung_up.wait(DEADLINE_SECONDS)
    inference.close()
