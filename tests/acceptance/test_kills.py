"""Random `kill -9` of every process during jobs: nothing is lost, doubled, stuck or torn.

`GRAFT_TEST_KILLS` sets how many (30 here, 200 in `make soak`); the seed is printed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx2
import psutil
import pytest
from sqlalchemy import select, text

from jobs.states import TRANSITIONS
from jobs.store.tables import job_events, model_versions
from jobs.worker_limits import WorkerLimits
from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore
from service.client import Graft, Json
from tests.acceptance.running import RunningService, descendants, running, start
from tests.images import class_folders, zip_bytes
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

KILLS = int(os.environ.get("GRAFT_TEST_KILLS", "30"))
ROLES = ("supervisor", "api", "inference", "worker", "forkserver", "train")
LONGEST_SECONDS = 240.0
# A job ends as `attempts-exhausted` when its own child dies three times without a new checkpoint:
# that is promised (docs/states.md), so no job loses its child more often than twice here.
CHILD_KILLS_PER_JOB = WorkerLimits().fault_limit - 1


class Cluster:
    """A service that is started again on the same folder and port when its supervisor dies."""

    def __init__(self, folder: Path, catalogue: Path) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._child_kills: Counter[str] = Counter()  # by job
        self.service = start(folder, catalogue=catalogue)
        self.port = int(self.service.url.rsplit(":", 1)[1])

    def kill(self, role: str) -> bool:
        """Kill the process of a role with SIGKILL; False if there is none to kill now."""
        pid = self.service.pids().get(role)
        if pid is None or (role == "train" and not self._may_lose_its_child(_job_of(pid))):
            return False
        below = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor":
            self.service.process.wait()
            # 0 processes are left 2 s after the supervisor is killed.
            until(lambda: not any(map(_lives, below)), 2.0)
            self.service = start(self._folder, catalogue=self._catalogue, port=self.port)
        return True

    def _may_lose_its_child(self, job_id: str | None) -> bool:
        if job_id is None or self._child_kills[job_id] >= CHILD_KILLS_PER_JOB:
            return False
        self._child_kills[job_id] += 1
        return True

    def stop(self) -> None:
        below = descendants(self.service.process.pid)
        self.service.process.kill()
        self.service.process.wait()
        until(lambda: not any(map(_lives, below)), 2.0)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _job_of(child_pid: int) -> str | None:
    """Return the job that a child works on: its log lies in a folder of the job's name."""
    try:
        paths = [file.path for file in psutil.Process(child_pid).open_files()]
    except psutil.Error:
        return None
    found = [match[0] for path in paths if (match := re.search(r"job_[0-9a-f]{32}", path))]
    return found[0] if found else None


def _patiently(graft: Graft, call: str, *arguments: object, **options: object) -> Json:
    """Repeat a call until an api answers; what was acknowledged is found by its key."""
    deadline = time.monotonic() + 60
    while True:
        try:
            answer: Json = getattr(graft, call)(*arguments, **options)
            return answer
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "no api answers"
            time.sleep(0.05)


def test_random_kills_lose_and_double_nothing(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("GRAFT_TEST_SEED", str(random.randrange(10**6))))  # noqa: S311
    chance = random.Random(seed)  # noqa: S311
    cluster = Cluster(tmp_path / "data", shared / "weights" / "catalog.json")
    kills: Counter[str] = Counter()
    acknowledged: dict[str, str] = {}
    try:
        with Graft(cluster.service.url) as graft:
            archive = shared / "data" / "hymenoptera.zip"
            dataset = _patiently(graft, "upload", archive, idempotency_key="data")
            deadline = time.monotonic() + LONGEST_SECONDS * max(1, KILLS / 30)
            while sum(kills.values()) < KILLS:
                assert time.monotonic() < deadline, f"only {kills} (seed {seed})"
                _keep_busy(graft, dataset["id"], acknowledged)
                time.sleep(chance.uniform(0.1, 2.0))
                # A training child is the rarest process, so it is taken whenever it can be.
                role = chance.choice(("train", "train", *ROLES))
                kills[role] += cluster.kill(role)
            jobs = _drained(graft, acknowledged)
            _check(graft, jobs, acknowledged)
        cluster.stop()
        _check_history(cluster.service)
    finally:
        cluster.service.process.kill()
    attempts = sum(job["attempt"] for job in jobs)
    told = f"kills {dict(kills)}, {len(jobs)} jobs in {attempts} attempts, seed {seed}"
    with capsys.disabled():
        sys.stdout.write(f"\n{told}\n")


def _keep_busy(graft: Graft, dataset_id: str, acknowledged: dict[str, str]) -> None:
    """Keep a job running and one waiting; each is asked for with its own key."""
    open_jobs = [
        job_id
        for job_id in acknowledged.values()
        if _patiently(graft, "job", job_id)["status"] in ("queued", "running")
    ]
    while len(open_jobs) < 2:
        key = f"job-{len(acknowledged)}"
        recipe = ("head", "finetune")[len(acknowledged) % 2]
        parameters = {"epochs": 1} if recipe == "finetune" else {}
        job = _patiently(
            graft,
            "submit",
            dataset_id,
            idempotency_key=key,
            backbone="squeezenet1_1",
            recipe=recipe,
            parameters=parameters,
            model="killed",
        )
        acknowledged[key] = job["id"]
        open_jobs.append(job["id"])


def _drained(graft: Graft, acknowledged: dict[str, str]) -> list[Json]:
    """Wait for the end of every acknowledged job: judged only when nothing moves any more."""
    deadline = time.monotonic() + 180
    jobs = []
    for job_id in acknowledged.values():
        while (job := _patiently(graft, "job", job_id))["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, f"stuck: {job}"
            time.sleep(0.1)
        jobs.append(job)
    return jobs


def _check(graft: Graft, jobs: list[Json], acknowledged: dict[str, str]) -> None:
    assert len(set(acknowledged.values())) == len(acknowledged)
    assert [job for job in jobs if job["status"] != "succeeded"] == []
    versions = sorted(job["result"]["version"] for job in jobs)
    assert versions == _patiently(graft, "model", "killed")["versions"]
    assert versions == list(range(1, len(jobs) + 1))
    until(graft.is_ready, 60.0)


def _check_history(service: RunningService) -> None:
    """Each job's log is a path of the state table; every artifact is whole and loadable."""
    allowed = {(a.value, b.value) for (a, _), b in TRANSITIONS.items()}
    states = select(job_events).where(job_events.c.kind == "state")
    with service.database() as database, database.read() as connection:
        events = connection.execute(states.order_by(job_events.c.job_id, job_events.c.seq))
        rows = [(event.job_id, event.data["status"]) for event in events]
        digests = list(connection.scalars(select(model_versions.c.artifact_digest)))
        if database.is_sqlite:
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    for (job, before), (next_job, after) in pairwise(rows):
        assert job != next_job or (before, after) in allowed
    blobs = BlobStore(service.data_folder / "blobs")
    for digest in digests:
        verify_artifact(blobs, digest)


def test_killed_supervisor_leaves_no_process(tmp_path: Path, shared: Path) -> None:
    service: RunningService = start(
        tmp_path / "data", catalogue=shared / "weights" / "catalog.json"
    )
    with service.client() as graft:
        until(graft.is_ready, 60.0)
    below = descendants(service.process.pid)
    assert {"api", "inference", "worker", "forkserver"} <= set(service.pids())
    service.process.kill()
    service.process.wait()
    until(lambda: not any(map(_lives, below)), 2.0)


def test_an_upload_in_parts_goes_on_after_the_api_was_killed_in_the_middle_of_one(
    tmp_path: Path,
) -> None:
    archive = zip_bytes(class_folders(per_class=20))
    parts = [archive[: len(archive) // 3], archive[len(archive) // 3 :]]
    with running(tmp_path / "data") as service, service.client() as graft:
        with httpx2.Client(base_url=service.url) as http:
            announced = {"filename": "shapes.zip", "bytes": len(archive), "purpose": "fine-tune"}
            upload = http.post("/v1/uploads", json=announced).raise_for_status().json()
            path = f"/v1/uploads/{upload['id']}"
            first = http.post(f"{path}/parts", content=parts[0]).raise_for_status().json()["id"]
        port = int(service.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST {path}/parts HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            client.sendall(f"{head}Content-Length: {len(parts[1])}\r\n\r\n".encode())
            client.sendall(parts[1][:-1])
            arriving = service.data_folder / "uploads"
            until(lambda: any(file.stat().st_size for file in arriving.glob("*.tmp")), 30.0)
            os.kill(service.pids()["api"], signal.SIGKILL)
            until(graft.is_ready, 60.0)
        with httpx2.Client(base_url=service.url) as http:
            assert http.get(path).raise_for_status().json()["parts"] == {first: len(parts[0])}
            last = http.post(f"{path}/parts", content=parts[1]).raise_for_status().json()["id"]
            whole = {"part_ids": [first, last]}
            done = http.post(f"{path}/complete", json=whole).raise_for_status().json()
        assert done["status"] == "completed"
        splits = graft.wait_for_dataset(done["file"]["id"])["splits"]
        assert sum(split["images"] for split in splits.values()) == 40
