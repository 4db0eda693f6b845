"""Stands in for `jobs.run` in tests of the worker: what it does is in the spec's seed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from jobs.errors import Diverged
from jobs.progress import FILE_NAME, ProgressWriter

CRASH, SILENT, CHECKPOINT_THEN_CRASH = 1, 2, 3


def run(spec_path: str) -> None:
    """Crash, hang, or get further each time before crashing."""
    spec = json.loads(Path(spec_path).read_text())
    progress = ProgressWriter(Path(spec["attempt_folder"]) / FILE_NAME)
    progress.phase("train")
    if spec["seed"] == SILENT:
        time.sleep(3600)
    if spec["seed"] == CHECKPOINT_THEN_CRASH:
        if spec["attempt"] == 5:
            progress.error(Diverged(1, "nan"))
            return
        progress.checkpoint(spec["attempt"])
    os.kill(os.getpid(), signal.SIGSEGV)
