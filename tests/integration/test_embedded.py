"""An embedded service ends with its owner, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

PROGRAM = Path(__file__).with_name("embedding.py")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_owner_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, PROGRAM, str(tmp_path / "data")],
        cwd=PROGRAM.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(PROGRAM.parents[2]), "GRAFT_OFFLINE": "1", "GRAFT_DEVICE": "cpu"},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline().startswith(b"http://127.0.0.1:")
    process = psutil.Process(owner.pid)
    until(lambda: len(process.children(recursive=True)) >= 4, 20.0)
    below = process.children(recursive=True)
    owner.send_signal(number)
    owner.wait(90.0)
    owner.stdout.close()
    until(lambda: not any(child.is_running() for child in below), 2.0)
