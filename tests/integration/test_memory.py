"""Training in a process whose memory is really limited."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.training_jobs import REPOSITORY

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
