"""A training child dies or meets a failing disk at every point: the job still gives its result."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from models_cache.artifacts import verify_artifact
from models_cache.blobs import BlobStore
from models_cache.errors import InsufficientStorage
from tests.faults import soak
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)

pytestmark = pytest.mark.slow

_FILES = (
    "blob",
    "checkpoint",
    "checkpoint.json",
    "engine_choice",
    "features",
    "pixels",
    "rates",
    "weights_record",
)
_STAGES = ("before_fsync", "before_rename", "after_rename")
#: In no order: the point of a step carries its number.
POINTS = (
    "progress.append",
    "train.step:1",
    "weights.after_rename",
    "weights.before_rename",
    "weights.chunk",
    *(f"{file}.{stage}" for file in _FILES for stage in _STAGES),
)
_OTHER_ACTIONS = ("enospc", "eio", "enomem")
_IN_CI = 2
_MOST_ATTEMPTS = 3


@pytest.fixture(scope="module")
def children() -> Iterator[TrainingChildren]:
    children = TrainingChildren()
    yield children
    children.close()


def _job(data_folder: Path, job_id: str) -> TrainingJob:
    """Return a fine-tuning of its own folder, so that nothing is cached yet."""
    manifest = store_dataset(data_folder, {"train": 6, "val": 3})
    catalogue = write_catalogue(data_folder / "source")
    parameters = {"epochs": 2, "batch_size": 4}
    spec = training_spec(
        manifest, catalogue, recipe="finetune", parameters=parameters, checkpoint_steps=1
    )
    return TrainingJob(data_folder, job_id, spec)


def _judge(job: TrainingJob) -> None:
    blobs = BlobStore(job.data_folder / "blobs")
    verify_artifact(blobs, job.result()["artifact"]["digest"])


def test_a_training_that_is_killed_at_every_point_ends_with_its_result(
    tmp_path: Path, children: TrainingChildren
) -> None:
    job = _job(tmp_path, "job_killed")
    plan = ",".join(f"{point}=kill" for point in POINTS)
    for _ in POINTS:
        assert job.run(children, plan) == -signal.SIGKILL
    assert job.run(children, plan) == 0
    reached = {path.name for path in (job.run_folder / "faults").iterdir()}
    assert reached == {point.replace(":", "-") for point in POINTS}
    _judge(job)


def test_a_failing_disk_costs_an_attempt_or_is_told_and_the_next_one_succeeds(
    tmp_path: Path, children: TrainingChildren, capsys: pytest.CaptureFixture[str]
) -> None:
    strikes = soak.sample(list(product(POINTS, _OTHER_ACTIONS)), _IN_CI)
    for number, (point, action) in enumerate(strikes):
        job = _job(tmp_path / str(number), "job_struck")
        for attempt in range(_MOST_ATTEMPTS):
            status = job.run(children, f"{point}={action}")
            if status == 0 and job.lines()[-1]["kind"] == "result":
                break
            assert attempt < _MOST_ATTEMPTS - 1, f"{point}={action}: {job.lines()}"
            if status == 0 and action == "enospc":
                assert job.lines()[-1]["code"] == InsufficientStorage.code
        _judge(job)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(strikes)} disks failed a training, seed {soak.SEED}\n")
