"""A service is backed up while it is used, lost, and restored: it answers as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import pointers
from jobs.store.database import Database
from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore
from service.client import Graft, GraftProblem, Json
from tests import images
from tests.acceptance.running import running
from tests.databases import database_url
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]


def command(
    *arguments: str, data_folder: Path, port: int = 8000
) -> subprocess.CompletedProcess[str]:
    """Run `graft` as an operator of that data folder."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    mine = {
        "GRAFT_DATA_DIR": str(data_folder),
        "GRAFT_DATABASE_URL": database_url(data_folder),
        "GRAFT_OFFLINE": "1",
        "GRAFT_PORT": str(port),
    }
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *arguments],
        env={**clean, **mine},
        capture_output=True,
        text=True,
        timeout=240,
    )


class Users:
    """Upload, publish and correct without a pause, in a thread of their own."""

    def __init__(self, url: str, folder: Path, dataset_id: str) -> None:
        self._url, self._folder, self._dataset_id = url, folder, dataset_id
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.turns = self._seen = 0
        self.jobs: list[str] = []

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def has_gone_on(self) -> bool:
        """Tell whether they have done more than a turn since this was last true."""
        going_on = self.turns > self._seen + 1
        self._seen = self.turns if going_on else self._seen
        return going_on

    def _work(self) -> None:
        with Graft(self._url) as graft:
            while not self._leaving.is_set():
                name = f"upload-{self.turns}"
                files = images.class_folders(per_class=2, first_seed=10 * self.turns)
                graft.upload(images.write_zip(self._folder / f"{name}.zip", files), name=name)
                if not self.jobs or graft.job(self.jobs[-1])["status"] == "succeeded":
                    self.jobs.append(train(graft, self._dataset_id, "busy")["id"])
                self.turns += 1


def train(graft: Graft, dataset_id: str, model: str) -> Json:
    return graft.submit(dataset_id, backbone="squeezenet1_1", recipe="head", model=model)


def scores(graft: Graft, model: str) -> object:
    return graft.predict(model, images.shape_bytes("disc", 5))["predictions"][0]["scores"]


def scores_if_served(graft: Graft, model: str) -> object:
    """Return scores, or None while pretrained weights are fetched, which the answer must say."""
    try:
        return scores(graft, model)
    except GraftProblem as problem:
        if problem.code != "weights-coming":
            raise
        return None


def test_a_service_that_is_in_use_is_backed_up_and_restored(tmp_path: Path, shared: Path) -> None:
    catalogue, root = shared / "weights" / "catalog.json", tmp_path / "backups"
    data, again = tmp_path / "data", tmp_path / "again"
    archive = images.write_zip(tmp_path / "kept.zip", images.class_folders(per_class=10))
    with running(data, catalogue=catalogue) as service, service.client() as graft:
        port = int(service.url.rsplit(":", 1)[1])
        dataset = graft.wait_for_dataset(graft.upload(archive, name="kept")["id"])
        graft.wait_for_job(train(graft, dataset["id"], "kept")["id"])
        before = scores(graft, "kept")
        with Users(service.url, tmp_path, dataset["id"]) as users:
            for _ in range(2):
                until(users.has_gone_on, 120.0)
                made = command("backup", "--to", str(root), data_folder=data)
                assert made.returncode == 0, made.stdout + made.stderr
            assert "nothing may go" in command("gc", data_folder=data).stdout
        looked = command("doctor", "--json", data_folder=data, port=port)
        found = {finding["check"]: finding["severity"] for finding in json.loads(looked.stdout)}
        assert {found[name] for name in ("port", "inference", "worker", "files")} == {"ok"}
        refused = command("restore", "--from", str(root), data_folder=data)
        assert (refused.returncode, "not empty" in refused.stderr) == (1, True)
    verified = command("backup", "verify", str(root), data_folder=data)
    assert verified.stdout.startswith("whole"), verified.stdout + verified.stderr
    restored = command("restore", "--from", str(root), data_folder=again)
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "the weights of squeezenet1_1" in restored.stdout
    with running(again, catalogue=catalogue) as service, service.client() as graft:
        until(lambda: scores_if_served(graft, "kept") == before, 60.0)
        ended = [graft.wait_for_job(job["id"]) for job in graft.jobs()]
        assert {job["status"] for job in ended} == {"succeeded"}
        assert len(graft.model("busy")["versions"]) == len(ended) - 1
        assert scores(graft, "busy")
    database = Database(database_url(again))
    blobs = BlobStore(again / "blobs")
    with database.read() as connection:
        assert pointers.missing_files(connection, blobs, pointers.present_blobs(blobs)) == {}
        owners = [o for o in pointers.owners(connection, blobs) if o.kind == "version"]
        rows = connection.exec_driver_sql("SELECT artifact_digest FROM model_versions").all()
    database.close()
    assert len(rows) == len(owners)
    for (digest,) in rows:
        verify_artifact(blobs, digest)
