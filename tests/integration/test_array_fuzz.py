"""Damaged npz and HDF5 files, some hundreds here, thousands in `make soak`.

`GRAFT_TEST_FUZZES` sets how many of each kind; what is tried follows from the seed and the number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.training_jobs import REPOSITORY

pytestmark = pytest.mark.slow

TRIES = int(os.environ.get("GRAFT_TEST_FUZZES", "150"))
SEED = 2026


@pytest.mark.parametrize(
    ("kind", "tries", "start"),
    [("npz", TRIES, "fork"), ("hdf5", TRIES, "fork"), ("hdf5", TRIES // 30, "exec")],
)
def test_damaged_arrays_are_refused_or_read_and_nothing_else(
    kind: str, tries: int, start: str
) -> None:
    """No hang, no crash of who unpacks, no error but those that say what is wrong with a file."""
    command = [sys.executable, "-m", "tests.array_fuzz", kind, str(tries), str(SEED), start]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["faults"] == [], done.stdout
    assert sum(told["outcomes"].values()) >= tries
    sys.stdout.write(f"{kind} {start}: {told['outcomes']}\n")
