"""A PostgreSQL server that is restarted, killed, full of locks: nothing accepted is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from jobs.states import TRANSITIONS
from jobs.store import workers
from jobs.store.database import DATABASE_AWAY, Database
from jobs.store.tables import job_events
from tests import images
from tests.acceptance.running import RunningService, running
from tests.postgresql import PostgresqlServer
from tests.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A server of its own: that of the other tests is not to be stopped."""
    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture
def url(server: PostgresqlServer, request: pytest.FixtureRequest) -> str:
    name = f"away_{abs(hash(request.node.name))}"
    return server.create(name)


class Asking(threading.Thread):
    """Asks for one thing again and again, and counts the answers that nobody may get."""

    def __init__(self, url: str, call: Callable[[httpx2.Client, int], httpx2.Response]) -> None:
        super().__init__()
        self._url = url
        self._call = call
        self._end = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.made: dict[str, str] = {}  # the id in an answer of 201 and 202, by key

    def run(self) -> None:
        turn = 0
        with httpx2.Client(base_url=self._url, timeout=60, trust_env=False) as http:
            while not self._end.is_set():
                answer = self._call(http, turn)
                self.statuses[answer.status_code] += 1
                if answer.status_code == 503:
                    away = answer.json()["code"] == "database-unavailable"
                    if not away or int(answer.headers["Retry-After"]) < 1:
                        self.wrong.append(answer.text)
                    time.sleep(0.1)
                    continue  # with the same key
                if answer.status_code >= 300:
                    self.wrong.append(f"{answer.status_code} {answer.text}")
                elif answer.status_code in (201, 202):
                    self.made[answer.request.headers["Idempotency-Key"]] = answer.json()["id"]
                turn += 1
                time.sleep(0.02)

    def finish(self) -> None:
        self._end.set()
        self.join(60)
        assert self.wrong == []


@pytest.mark.slow
@pytest.mark.shared
def test_a_job_outlives_a_database_that_is_restarted_killed_and_disconnected(
    server: PostgresqlServer, url: str, shared: Path, tmp_path: Path
) -> None:
    """Answers are right or 503; the training never stops; every accepted job ends, once."""
    archive = images.write_zip(tmp_path / "a.zip", images.class_folders(per_class=12))
    catalogue = shared / "weights" / "catalog.json"
    environment = {"GRAFT_DATABASE_URL": url}
    with (
        running(tmp_path / "data", catalogue=catalogue, environment=environment) as service,
        service.client() as graft,
    ):
        dataset = graft.wait_for_dataset(graft.upload(archive)["id"])["id"]
        graft.wait_for_job(graft.submit(dataset, model="m", backbone="squeezenet1_1")["id"])
        parameters = {"epochs": 40, "batch_size": 8}
        spec: dict[str, Any] = {"model": "long", "parameters": parameters, "priority": 5}
        job = graft.submit(dataset, backbone="squeezenet1_1", recipe="finetune", **spec)["id"]
        until(lambda: graft.job(job)["phase"] == "train", 60)
        image = images.shape_bytes("disc", 5)

        def submit(http: httpx2.Client, turn: int) -> httpx2.Response:
            if turn >= 4:
                return http.get("/v1/jobs")
            body = {"dataset": dataset, "model": "queued", "backbone": "squeezenet1_1"}
            headers = {"Idempotency-Key": f"k{turn}"}
            return http.post("/v1/jobs", json=body, headers=headers)

        asking = [
            Asking(service.url, submit),
            Asking(service.url, lambda http, _: http.get(f"/v1/jobs/{job}")),
            Asking(service.url, lambda http, _: http.post("/v1/models/m/predict", content=image)),
        ]
        for thread in asking:
            thread.start()
        for harm in (_disconnect, _restart, _kill, _disconnect, _kill):
            harm(server)
            until(graft.is_ready, 30)
            time.sleep(0.5)
        for thread in asking:
            thread.finish()
        done = graft.wait_for_job(job)
        assert done["attempt"] == 1, "the training was disturbed"
        accepted = asking[0].made
        assert len(accepted) == 4
        assert all(graft.wait_for_job(made)["status"] == "succeeded" for made in accepted.values())
        assert graft.model("long")["versions"] == [1]
        assert graft.model("queued")["versions"] == [1, 2, 3, 4]
        assert sum(thread.statuses[503] for thread in asking) > 0, "nothing was ever away"
        _check_history(service)
    assert "Traceback" not in service.log_path.read_text()


def _disconnect(server: PostgresqlServer) -> None:
    """End every connection, twenty times a second."""
    with server.connect() as connection:
        for _ in range(20):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname <> 'postgres'"
            )
            time.sleep(0.05)


def _restart(server: PostgresqlServer) -> None:
    server.stop("fast")
    time.sleep(1.0)
    server.start()


def _kill(server: PostgresqlServer) -> None:
    server.stop("immediate")
    time.sleep(2.0)
    server.start()


def _check_history(service: RunningService) -> None:
    """Each job's log is a path of the state table."""
    allowed = {(a.value, b.value) for (a, _), b in TRANSITIONS.items()}
    states = select(job_events).where(job_events.c.kind == "state")
    with service.database() as database, database.read() as connection:
        rows = connection.execute(states.order_by(job_events.c.job_id, job_events.c.seq)).all()
    for before, after in pairwise(rows):
        step = (before.data["status"], after.data["status"])
        assert before.job_id != after.job_id or step in allowed


def test_a_lock_of_all_rows_is_waited_for_and_one_that_stays_is_an_error_of_the_moment(
    server: PostgresqlServer, url: str
) -> None:
    patient, hasty = Database(url), Database(url, patience_seconds=0.3)
    patient.migrate()

    def register(database: Database, name: str) -> None:
        with database.write() as connection:
            workers.register(connection, name, "host", 1, "cpu")

    name = patient.url.database or ""
    with server.connect(name) as storm, storm.transaction():
        storm.execute("LOCK TABLE workers, jobs IN ACCESS EXCLUSIVE MODE")
        waiting = [
            threading.Thread(target=register, args=(patient, f"w{number}")) for number in range(8)
        ]
        for thread in waiting:
            thread.start()
        with pytest.raises(DATABASE_AWAY):
            register(hasty, "hasty")
    for thread in waiting:
        thread.join()
    with patient.read() as connection:
        found = connection.scalars(text("SELECT id FROM workers ORDER BY id")).all()
    assert found == [f"w{number}" for number in range(8)]
    patient.close()
    hasty.close()


def test_a_process_that_stops_inside_a_transaction_does_not_stop_the_others(url: str) -> None:
    stopped, other = Database(url, patience_seconds=0.5), Database(url)
    other.migrate()

    def stop_and_go_on() -> None:
        with stopped.write() as connection:
            workers.register(connection, "stopped", "host", 1, "cpu")
            with other.write() as writing:  # waits for the server to end the first session
                workers.register(writing, "other", "host", 1, "cpu")
            connection.execute(text("SELECT 1"))

    with pytest.raises(DATABASE_AWAY):
        stop_and_go_on()
    with other.read() as connection:
        assert connection.scalars(text("SELECT id FROM workers")).all() == ["other"]
    stopped.close()
    other.close()


def test_who_reads_files_within_a_snapshot_is_not_cut_off(url: str) -> None:
    database = Database(url, patience_seconds=0.3)

    def look(*, patient: bool) -> None:
        with database.read(patient=patient) as connection:
            connection.execute(text("SELECT 1"))
            time.sleep(1.0)  # as long as the files take
            connection.execute(text("SELECT 1"))

    look(patient=True)
    with pytest.raises(DATABASE_AWAY):
        look(patient=False)
    database.close()


def test_migrations_wait_for_one_that_takes_longer_than_any_statement_may(
    server: PostgresqlServer, url: str
) -> None:
    database = Database(url, patience_seconds=0.2)
    with server.connect(database.url.database or "") as slow:
        slow.execute("SELECT pg_advisory_lock(4711)")
        waiting = threading.Thread(target=database.migrate)
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
    waiting.join(30)
    assert database.is_migrated()
    with pytest.raises(OperationalError), database.read() as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
    database.close()


def test_a_database_that_may_only_be_read_is_away(server: PostgresqlServer, url: str) -> None:
    """After a failover a connection may lead to a standby for a while."""
    database = Database(url)
    database.migrate()
    with server.connect() as connection:
        name = str(database.url.database)
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    database.close()
    with pytest.raises(DATABASE_AWAY), database.write() as writing:
        workers.register(writing, "w", "host", 1, "cpu")
    database.close()


def test_listeners_to_a_job_go_on_when_the_database_is_back(
    server: PostgresqlServer, url: str, tmp_path: Path
) -> None:
    archive = images.write_zip(tmp_path / "a.zip", images.class_folders(per_class=5))
    environment = {"GRAFT_DATABASE_URL": url}
    with (
        running(tmp_path / "data", environment=environment) as service,
        service.client() as graft,
        httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as http,
    ):
        dataset = graft.wait_for_dataset(graft.upload(archive)["id"])["id"]
        server.stop("immediate")
        refused = http.post("/v1/jobs", json={"dataset": dataset, "backbone": "resnet18"})
        assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
        assert refused.headers["Retry-After"] == "2"
        server.start()
        until(graft.is_ready, 30)
        job = graft.submit(dataset, backbone="resnet50", recipe="scratch")["id"]
        listening = {"Accept": "text/event-stream"}
        with http.stream("GET", f"/v1/jobs/{job}/events", headers=listening) as stream:
            lines = stream.iter_lines()
            while "running" not in next(lines):
                pass
            server.stop("immediate")
            until(lambda: "waiting for the database" in next(lines), 30)
            server.start()
            until(graft.is_ready, 30)
            graft.act(job, "cancel")
            assert "event: end" in list(lines)
