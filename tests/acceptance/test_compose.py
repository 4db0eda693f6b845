"""The main job through `docker/compose.yaml`, its services run as plain processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Graft, wait_until_ready
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
    for name in ("inference", "api", "worker"):
        services.start(name)
    archive = shared / "data" / "hymenoptera.zip"
    with Graft(f"http://127.0.0.1:{port}") as graft:
        wait_until_ready(graft)
        dataset = graft.wait_for_dataset(graft.upload(archive, name="insects")["id"])
        submitted = graft.submit(dataset["id"], backbone="squeezenet1_1", model="insects")
        until(lambda: graft.job(submitted["id"])["status"] == "running", 60)
        assert services.stop("worker") == 0, services.log("worker")[-3000:]
        assert graft.job(submitted["id"])["status"] == "queued"
        services.start("worker")
        job = graft.wait_for_job(submitted["id"])
        assert job["attempt"] == 2
        right = right_answers(graft, archive, dataset, "insects")
        reported = job["metrics"]["val/accuracy_top1"]
        assert right / dataset["splits"]["val"]["images"] == pytest.approx(reported, abs=1e-9)
    for name in ("api", "worker", "inference"):
        assert services.stop(name) == 0, services.log(name)[-3000:]


def test_rows_are_in_postgresql_and_files_in_the_volume_alone(services: Composed) -> None:
    data = services.folder / "data"
    assert {path.name for path in data.iterdir()} >= {"blobs", "runs"}
    assert not list(data.glob("*.db*"))
    if can_confine():  # else another file could have been written, and nobody would know
        probe = services._confined(["graft", "ping", "api"])
        assert "remount,bind,ro" in probe[-1]
    assert "Read-only file system" not in "".join(map(services.log, ("api", "worker", "inference")))


def test_secrets_are_in_no_log_and_no_environment(services: Composed) -> None:
    for name in ("api", "worker", "inference"):
        assert "pass:word" not in services.log(name)
        assert "pass%3Aword" not in services.log(name)
        assert "word@with" not in "".join(services._environment(services.services[name]).values())
    files = [p for p in (services.folder / "data").rglob("*") if p.is_file() and not p.is_symlink()]
    small = [path for path in files if path.stat().st_size < 1 << 20]
    assert small
    assert not [path for path in small if b"pass:word@" in path.read_bytes()]
