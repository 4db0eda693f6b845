"""A process dies at every named point of a job's way, once: the job still ends, exactly once."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from service.client import Graft, GraftProblem, Json
from tests import images
from tests.acceptance.running import running
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

#: In the order in which one upload and one fine-tuning reach them. Never three of one child in a
#: row without a checkpoint: that is a poison job, and is stopped as one.
POINTS = (
    "blob.before_rename",  # the api, with the upload received
    "ingest.after_blobs",
    "ingest.before_result",
    "claim.after_commit",
    "train.after_head",
    "train.step:1",
    "checkpoint.before_rename",
    "publish.before_tx",
    "publish.in_tx",
    "publish.after_commit",
)


def _upload(graft: Graft, archive: Path) -> Json:
    """Repeat an upload that was cut off; its key finds what may have been acknowledged."""
    found: list[Json] = []

    def attempt() -> bool:
        try:
            found.append(graft.upload(archive, name="crashed", idempotency_key="crashed"))
        except httpx2.TransportError:
            return False
        return True

    until(attempt, 60.0)
    return found[0]


def test_one_version_is_published_although_every_point_kills_once(
    tmp_path: Path, shared: Path
) -> None:
    archive = images.write_zip(
        tmp_path / "crashed.zip", images.class_folders(("disc", "cross"), per_class=10)
    )
    plan = ",".join(f"{point}=kill" for point in POINTS)
    catalogue = shared / "weights" / "catalog.json"
    with (
        running(
            tmp_path / "data", catalogue=catalogue, environment={"GRAFT_FAULTS": plan}
        ) as service,
        service.client() as graft,
    ):
        dataset = _upload(graft, archive)
        until(lambda: graft.dataset(dataset["id"])["status"] == "ready", 60.0)
        job = graft.submit(
            dataset["id"],
            backbone="squeezenet1_1",
            recipe="finetune",
            model="crashed",
            parameters={"epochs": 2, "batch_size": 8},
            idempotency_key="job",
        )
        done = graft.wait_for_job(job["id"])
        assert done["result"] == {"model": "crashed", "version": 1}
        assert graft.model("crashed")["versions"] == [1]
        until(graft.is_ready, 30.0)
        assert graft.predict("crashed", images.shape_bytes("disc", 5))["predictions"]
        reached = {path.name for path in (service.data_folder / "run" / "faults").iterdir()}
    assert reached == {point.replace(":", "-") for point in POINTS}


def test_full_disk_at_an_upload_is_507_and_the_next_upload_works(
    tmp_path: Path, shared: Path
) -> None:
    archive = images.write_zip(tmp_path / "full.zip", images.class_folders(per_class=10))
    faults = {"GRAFT_FAULTS": "blob.before_fsync=enospc"}
    with running(tmp_path / "data", environment=faults) as service, service.client() as graft:
        with pytest.raises(GraftProblem) as refused:
            graft.upload(archive, name="full")
        assert (refused.value.status, refused.value.code) == (507, "insufficient-storage")
        assert list((service.data_folder / "uploads").iterdir()) == []
        graft.wait_for_dataset(graft.upload(archive, name="full")["id"])
