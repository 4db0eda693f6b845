"""Exports in real child processes, and as rows: once, fenced, gone with their version."""

from __future__ import annotations

import signal
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import publish
from jobs.errors import VersionNotFound
from jobs.exports import rows
from jobs.exports.errors import ExportNotFound
from jobs.states import JobState
from jobs.store import jobs, leases, models, workers
from jobs.store.database import Database
from jobs.store.models import NewVersion, Version
from jobs.store.tables import DEFAULT_PROJECT
from models_cache.blobs import Blob, BlobStore
from models_cache.errors import BlobMissing
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Path, children: TrainingChildren
) -> TrainingJob:
    """A published head of random features."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = store_dataset(folder, {"train": 6, "val": 3})
    job = TrainingJob(folder, "job_head", training_spec(manifest, catalogue))
    assert job.run(children) == 0
    return job


def export_job(trained: TrainingJob, job_id: str, **different: object) -> TrainingJob:
    spec = {
        "kind": "export",
        "model": "m",
        "version": 1,
        "format": "onnx",
        "artifact_digest": trained.result()["artifact"]["digest"],
        "threads": 1,
        "time_limit_seconds": None,
        **different,
    }
    return TrainingJob(trained.data_folder, job_id, spec)


@pytest.mark.parametrize("format_name", ["onnx", "torch_export"])
def test_child_publishes_a_checked_zip_and_tells_its_phases(
    trained: TrainingJob, children: TrainingChildren, format_name: str
) -> None:
    job = export_job(trained, f"job_{format_name}", format=format_name)
    assert job.run(children) == 0
    phases = [line["phase"] for line in job.lines() if line["kind"] == "phase"]
    assert phases == ["load", "reference", "export", "check", "publish"]
    compared = [line for line in job.lines() if line["kind"] == "progress"][-1]
    assert compared["unit"] == "images"
    assert compared["done"] == compared["total"] == job.result()["checked"]["images"]
    file = job.result()["file"]
    blobs = BlobStore(trained.data_folder / "blobs")
    assert blobs.exists(Blob(file["sha256"], file["size"]))
    with zipfile.ZipFile(blobs.local_path(file["sha256"])) as archive:
        assert archive.testzip() is None
        assert "example.py" in archive.namelist()
    assert not list(job.attempt_folder.glob("model.*"))


def test_child_that_is_killed_in_between_is_made_again(
    trained: TrainingJob, children: TrainingChildren
) -> None:
    job = export_job(trained, "job_killed")
    assert job.run(children, faults="export.after_graph=kill") == -signal.SIGKILL
    assert job.run(children) == 0
    first = job.result()["file"]
    again = export_job(trained, "job_again")
    assert again.run(children) == 0
    assert again.result()["file"] == first  # the same content gives the same zip


def test_missing_weights_are_named(trained: TrainingJob, children: TrainingChildren) -> None:
    file = next((trained.data_folder / "weights").glob("*.pth"))
    hidden = file.rename(file.with_suffix(".hidden"))
    try:
        job = export_job(trained, "job_without")
        assert job.run(children) == 0
        assert job.lines()[-1]["code"] == "weights-unavailable"
    finally:
        hidden.rename(file)


@pytest.fixture
def database(database: Database) -> Database:
    """With a worker, and two versions of a model."""
    with database.write() as connection:
        workers.register(connection, "w", "host", 1, "cpu")
        for _ in range(2):
            models.publish(connection, _new_version(), promote=True)
    return database


def _new_version() -> NewVersion:
    return NewVersion(
        name="m",
        artifact_digest="0" * 64,
        files={},
        task="classification",
        architecture="squeezenet1_1",
        classes=["a", "b"],
        metrics={},
        project=DEFAULT_PROJECT,
    )


def version(database: Database, number: int) -> Version:
    with database.read() as connection:
        return models.version(connection, "m", number, DEFAULT_PROJECT)


def ask(database: Database, number: int, *, stored: bool = True, format_name: str = "onnx") -> str:
    found = version(database, number)
    with database.write() as connection:
        known = rows.find(connection, found, format_name, lambda _blob: stored)
        return (known or rows.add(connection, found, format_name)).id


def finish(database: Database, blobs: BlobStore, sha256: str) -> None:
    """Do what a worker does with an export whose child has ended."""
    with database.write() as connection:
        job = leases.claim(connection, [rows.TYPE], "w", "t", timedelta(seconds=60))
    assert job is not None
    last: dict[str, Any] = {"kind": "result", "at": 0.0, "checked": {"images": 1}}
    last["file"] = {"sha256": sha256, "size": 3}
    publish.finish(database, blobs, job, jobs.Lease(job.id, "t"), last)


def test_there_is_one_export_of_a_version_and_a_format(database: Database, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    first = ask(database, 1)
    assert ask(database, 1) == first
    others = [ask(database, 2), ask(database, 1, format_name="torch_export")]
    assert len({first, *others}) == 3
    finish(database, blobs, blobs.put_bytes(b"zip").sha256)
    assert ask(database, 1) == first
    with database.read() as connection:
        assert rows.get(connection, version(database, 1), first).status is JobState.SUCCEEDED
        with pytest.raises(ExportNotFound):
            rows.get(connection, version(database, 2), first)
    again = ask(database, 1, stored=False)  # its file is gone
    assert again != first


def test_export_whose_file_is_missing_is_not_published(database: Database, tmp_path: Path) -> None:
    export_id = ask(database, 1)
    with pytest.raises(BlobMissing):
        finish(database, BlobStore(tmp_path / "blobs"), "1" * 64)
    with database.read() as connection:
        assert jobs.get(connection, export_id, DEFAULT_PROJECT).result is None


def test_version_takes_its_exports_along(database: Database, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    done, kept = ask(database, 1), ask(database, 2)
    finish(database, blobs, blobs.put_bytes(b"zip").sha256)
    queued = ask(database, 1, format_name="torch_export")
    with database.write() as connection:
        found = models.version(connection, "m", 1, DEFAULT_PROJECT)
        models.remove_version(connection, "m", 1, DEFAULT_PROJECT)
        assert rows.remove_all(connection, found) == [done]
    with database.read() as connection:
        assert jobs.get(connection, queued, DEFAULT_PROJECT).status is JobState.CANCELLED
        assert jobs.get(connection, kept, DEFAULT_PROJECT).status is JobState.QUEUED


def test_export_of_a_version_that_went_meanwhile_fails(database: Database, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    ask(database, 1)
    with database.write() as connection:
        models.remove_version(connection, "m", 1, DEFAULT_PROJECT)
    with pytest.raises(VersionNotFound, match="has no version or alias '1'"):
        finish(database, blobs, blobs.put_bytes(b"zip").sha256)
