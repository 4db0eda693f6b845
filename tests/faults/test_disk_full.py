"""A full disk: clear refusals, room to cancel and delete, and all goes on when there is space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.states import JobState
from jobs.store import jobs
from jobs.store.ballast import Ballast
from jobs.store.database import Database
from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore
from models_cache.disk_space import LowWater
from models_cache.errors import DiskSpaceLow, InsufficientStorage
from service.client import GraftProblem
from tests.faults import soak
from tests.faults.api_operations import ApiGround
from tests.faults.checker import violations
from tests.faults.final_state import read_final_state
from tests.faults.ground import respawning
from tests.faults.history import read_history
from tests.faults.running_api import running_api
from tests.faults.small_disk import SmallDisk, small_disk
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)
from tests.waiting import until

_MIB = 1 << 20
_LOW_WATER_BYTES, _BALLAST_BYTES = 4 * _MIB, 2 * _MIB
#: What is tried when bytes are short, and again when files are.
_STAGES = ("upload", "submit", "start of a job", "cancel", "delete", "what comes after")
_SURVIVED: list[str] = []  # for the figure of a soak
#: Bytes left to a training: it fails at another stage with each.
_ROOM_BYTES = [0, 300_000, 1 * _MIB, 4 * _MIB, 7 * _MIB, 9 * _MIB, 12 * _MIB]


def _low(disk: SmallDisk) -> None:
    disk.fill(left_bytes=_LOW_WATER_BYTES // 2)


def _few(disk: SmallDisk) -> None:
    disk.fill_inodes(left=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_low", "make_full"),
    [(_low, SmallDisk.fill), (_few, SmallDisk.fill_inodes)],
    ids=["bytes", "files"],
)
def test_a_full_disk_refuses_what_comes_and_lets_people_make_room(
    tmp_path: Path, make_low: Callable[[SmallDisk], None], make_full: Callable[[SmallDisk], None]
) -> None:
    marks = (str(_LOW_WATER_BYTES), str(_BALLAST_BYTES))
    environment = {"GRAFT_LOW_WATER_BYTES": marks[0], "GRAFT_BALLAST_BYTES": marks[1]}
    place, log_path = "tests.faults.worker_process:run", tmp_path / "worker.log"
    with (
        small_disk(tmp_path / "disk", 32 * _MIB, 2000) as disk,
        running_api(disk.folder / "data", tmp_path, environment) as api,
        respawning(place, str(disk.folder / "data"), *marks, environment={}, log_path=log_path),
    ):
        ground, ballast = api.ground, disk.folder / "data" / "ballast"
        until(ballast.exists, 60.0)
        kept = ground.client.upload(ground.archive("kept"), "kept", name="kept")
        until(lambda: ground.graft.dataset(kept["id"])["status"] == "ready", 60.0)
        doomed = ground.dataset()
        make_low(disk)
        _is_refused(ground)
        waiting, unwanted = _waiting_job(ground), _waiting_job(ground)
        until(lambda: _phase(ground, waiting) == "waiting-for-space", 60.0)
        make_full(disk)
        ground.graft.act(unwanted, "cancel")
        ground.graft.delete_dataset(doomed)
        assert not ballast.exists()
        disk.free()
        until(lambda: _status(ground, waiting) is JobState.SUCCEEDED, 60.0)
        again = ground.client.upload(ground.archive("again"), "again", name="again")
        until(lambda: ground.graft.dataset(again["id"])["status"] == "ready", 60.0)
        until(ballast.exists, 60.0)
        final = read_final_state(ground.data_folder)
        found = violations(read_history(api.history_path), final)
    assert [v for v in found if not v.what.startswith("the file 000")] == []
    _SURVIVED.extend(_STAGES)


def _is_refused(ground: ApiGround) -> None:
    graft, archive = ground.graft, ground.archive("refused")
    calls: list[Callable[[], object]] = [
        lambda: graft.upload(archive),
        lambda: graft.submit("ds_any", backbone="squeezenet1_1", recipe="head"),
    ]
    for call in calls:
        with pytest.raises(GraftProblem) as refused:
            call()
        assert (refused.value.status, refused.value.code) == (507, DiskSpaceLow.code)
        assert "bytes and " in str(refused.value)
        assert f"{_LOW_WATER_BYTES} bytes are kept free" in str(refused.value)


def _waiting_job(ground: ApiGround) -> str:
    """Have an ingest queued without a call, which would be refused by now."""
    ground.turn += 1
    job_id, dataset_id = f"job_{'a' * 8}{ground.turn}", ground.dataset()
    with ground.database.write("setup") as connection:
        jobs.accept(
            connection,
            jobs.NewJob(
                id=job_id, type="ingest", spec={}, dataset_id=dataset_id, project="default"
            ),
        )
    return job_id


def _phase(ground: ApiGround, job_id: str) -> str | None:
    with ground.database.read() as connection:
        return jobs.get(connection, job_id, "default").phase


def _status(ground: ApiGround, job_id: str) -> JobState:
    with ground.database.read() as connection:
        return jobs.get(connection, job_id, "default").status


@pytest.fixture(scope="module")
def children() -> Iterator[TrainingChildren]:
    children = TrainingChildren()
    yield children
    children.close()


@pytest.mark.slow
def test_a_training_says_that_the_disk_is_full_and_succeeds_when_there_is_space(
    tmp_path: Path, children: TrainingChildren
) -> None:
    told = []
    catalogue = write_catalogue(tmp_path / "source")
    for room_bytes in soak.sample(_ROOM_BYTES, 3):
        with small_disk(tmp_path / f"disk-{room_bytes}", 64 * _MIB, 4000) as disk:
            manifest = store_dataset(disk.folder, {"train": 6, "val": 3})
            parameters = {"epochs": 2, "batch_size": 4}
            spec = training_spec(
                manifest, catalogue, recipe="finetune", parameters=parameters, checkpoint_steps=1
            )
            job = TrainingJob(disk.folder, "job_full", spec)
            path = job.next_spec()
            disk.fill(left_bytes=room_bytes)
            status = children.run(path)
            if status == 0 and job.lines() and job.lines()[-1]["kind"] == "error":
                told.append(job.lines()[-1]["code"])
            disk.free()
            assert job.run(children) == 0
            verify_artifact(BlobStore(disk.folder / "blobs"), job.result()["artifact"]["digest"])
        _SURVIVED.append(f"a training with {room_bytes} bytes")
    assert set(told) <= {InsufficientStorage.code}
    if soak.SOAK:
        total = 2 * len(_STAGES) + len(_ROOM_BYTES)
        value, target = f"{len(_SURVIVED)} of {total}", f"{total} of {total}"
        soak.write_figure("disk-full-stages", value, target, ok=len(_SURVIVED) == total)


def test_the_low_water_mark_counts_what_is_announced(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * _MIB, 1000) as disk:
        mark = LowWater(disk.folder, 4 * _MIB)
        mark.require()
        mark.require(3 * _MIB)
        with pytest.raises(DiskSpaceLow):
            mark.require(5 * _MIB)
        disk.fill_inodes(left=100)
        with pytest.raises(DiskSpaceLow):
            mark.require()
        LowWater(disk.folder, 0).require(1 << 40)  # no mark


def test_sqlite_deletes_on_a_full_disk_only_with_ballast(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * _MIB, 1000) as disk:
        ballast = Ballast(disk.folder / "ballast", 2 * _MIB, 0)
        ballast.make()
        assert ballast.path.stat().st_blocks * 512 >= 2 * _MIB
        database = Database(f"sqlite:///{disk.folder / 'graft.db'}", ballast)
        database.migrate()
        with database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE big (data BLOB)")
            connection.exec_driver_sql("INSERT INTO big VALUES (randomblob(1000000))")
        disk.fill()
        with database.write() as connection:
            connection.exec_driver_sql("DELETE FROM big")
        assert not ballast.path.exists()
        disk.fill()
        ballast.make()
        assert not ballast.path.exists()  # there is no room for it
        disk.free()
        database.restore_ballast()
        assert ballast.path.exists()
        database.close()
