"""The main job through `docker/compose.yaml`, its services run as plain processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Graft, GraftProblem, wait_until_ready
from service.free_port import free_port
from tests.acceptance.composed import Composed, can_confine, composed
from tests.acceptance.judging import right_answers
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port("127.0.0.1")


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, port: int
) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("composed")
    overrides = {
        "GRAFT_OFFLINE": "1",
        "GRAFT_WEIGHTS_CATALOG": str(shared / "weights" / "catalog.json"),
    }
    with composed(folder, port, overrides) as found:
        yield found


def test_main_job_through_the_services_of_the_compose_file(
    services: Composed, shared: Path, port: int
) -> None:
    key = services.run("api", "keys", "create", "--scope", "admin")
    services.start("inference")
    for name in ("api", "worker"):
        services.start(name)
        services.wait_until_healthy(name)
    services.wait_until_healthy("inference")
    archive = shared / "data" / "hymenoptera.zip"
    with Graft(f"http://127.0.0.1:{port}") as nobody, pytest.raises(GraftProblem) as refused:
        list(nobody.models())
    assert refused.value.status == 401
    with Graft(f"http://127.0.0.1:{port}", key=key) as graft:
        wait_until_ready(graft)
        dataset = graft.wait_for_dataset(graft.upload(archive, name="insects")["id"])
        submitted = graft.submit(dataset["id"], backbone="squeezenet1_1", model="insects")
        until(lambda: graft.job(submitted["id"])["status"] == "running", 60)
        assert services.stop("worker") == 0, services.log("worker")[-3000:]
        assert graft.job(submitted["id"])["status"] == "queued"
        services.start("worker")
        services.wait_until_healthy("worker")
        job = graft.wait_for_job(submitted["id"])
        assert job["attempt"] == 2
        right = right_answers(graft, archive, dataset, "insects")
        reported = job["metrics"]["val/accuracy_top1"]
        assert right / dataset["splits"]["val"]["images"] == pytest.approx(reported, abs=1e-9)
    for name in ("api", "worker", "inference"):
        assert services.stop(name) == 0, services.log(name)[-3000:]


def test_rows_are_in_postgresql_and_nothing_was_written_elsewhere(services: Composed) -> None:
    data = services.folder / "data"
    assert {path.name for path in data.iterdir()} >= {"blobs", "runs"}
    assert not list(data.glob("*.db*"))
    for name in ("api", "worker", "inference"):
        log = services.log(name)
        assert "Read-only file system" not in log, name
        assert {"time", "level", "message"} <= json.loads(log.splitlines()[0]).keys(), name


def test_what_is_confined_cannot_write_elsewhere(services: Composed) -> None:
    if not can_confine():
        return  # another user than root: the files of the system are closed to it anyway
    outside = services.folder / "outside"
    for path, allowed in ((services.folder / "data" / "inside", True), (outside, False)):
        done = subprocess.run(services.confined(["touch", str(path)]), capture_output=True)
        assert (done.returncode == 0) is allowed, path
        assert path.exists() is allowed
    everyone = subprocess.run(
        services.confined(["grep", "CapEff", "/proc/self/status"]), capture_output=True, text=True
    )
    assert set(everyone.stdout.split()[1]) == {"0"}


def test_secrets_are_in_no_log_and_in_no_file_of_the_volume(services: Composed) -> None:
    for name in ("api", "worker", "inference"):
        assert "word@with" not in services.log(name)
        assert "word%40with" not in services.log(name)
    files = [path for path in (services.folder / "data").rglob("*") if path.is_file()]
    small = [path for path in files if path.stat().st_size < 1 << 20]
    assert len(small) > 3
    assert not [path for path in small if b"word@with" in path.read_bytes()]
