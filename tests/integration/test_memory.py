"""Training in a process whose memory is really limited, and the memory that it really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.admission import need_of
from jobs.gate import size_of
from models_cache.catalogue import Catalogue
from tests.training_jobs import REPOSITORY, TrainingJob, store_dataset, training_spec

pytestmark = pytest.mark.slow

_MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("spare_bytes", "error"), [(200 * _MEBIBYTE, None), (8 * _MEBIBYTE, "image-exceeds-memory")]
)
def test_a_batch_that_does_not_fit_is_learned_from_in_parts(
    spare_bytes: int, error: str | None
) -> None:
    command = [sys.executable, "-m", "tests.integration.starved_steps", str(spare_bytes)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["error"] == error
    assert found["warnings"]
    assert set(found["warnings"]) == {"batch-halved"}
    assert found["most_images"] < 32
    if error is None:
        assert found["steps"] == 3


@pytest.mark.shared
@pytest.mark.parametrize("architecture", ["mobilenet_v2", "squeezenet1_1"])
def test_estimate_of_a_first_job_is_its_peak_to_twice_its_peak(
    architecture: str, shared: Path, tmp_path: Path
) -> None:
    manifest = store_dataset(tmp_path, {"train": 32, "val": 4})  # of each of two classes
    chosen = {"architecture": architecture, "weights": "DEFAULT", "recipe": "finetune"}
    catalogue = shared / "weights" / "catalog.json"
    spec = training_spec(manifest, catalogue, **chosen, parameters={"epochs": 1}, threads=2)
    job = TrainingJob(tmp_path, "job_first", spec)
    assert job.start().wait(timeout=300) == 0
    peak_bytes = job.result()["resources"]["peak_memory_bytes"]

    asked = {"backbone": architecture, "recipe": "finetune", "parameters": {}}
    need = need_of(asked, [], size_of(asked, Catalogue.load()), on_gpu=False)
    assert peak_bytes <= need.host_bytes <= 2 * peak_bytes
