"""Stands in for the child of an ingest: what it does is in the name of its job.

    python -m tests.faults.cheap_child SPEC

`job_<what>_<number>`: `quick` ends well, `long` lasts until it is told to end, `crash` dies, `fail`
says why, `silent` says nothing, `slow` and `slower` end well after a while. Starts within 0.2 s.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs.errors import Diverged
from jobs.progress import FILE_NAME, ProgressWriter

_STOPPED_ON_REQUEST = 75
_SECONDS = {"slow": 1.6, "slower": 4.5, "long": 3600.0}
_FACTS = {
    "manifest_sha256": "0" * 64,
    "report_sha256": "0" * 64,
    "digest": "0" * 64,
    "task": "classification",
    "classes": ["a", "b"],
    "splits": {},
}


def main(spec_path: Path) -> None:
    """Do what the job's name says."""
    signal.signal(signal.SIGTERM, _stop)
    spec = json.loads(spec_path.read_text())
    what = spec["job_id"].split("_")[1]  # the id of a job of a real api is that of a quick one
    progress = ProgressWriter(Path(spec["attempt_folder"]) / FILE_NAME)
    progress.phase(f"attempt-{spec['attempt']}")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "silent":
        time.sleep(3600)
    if what == "fail":
        progress.error(Diverged(1, "nan"))
        return
    ends_at = time.monotonic() + _SECONDS.get(what, 0.0)
    step = 0
    while True:
        step += 1
        progress.metrics(step, {"val/loss": 1.0 / step})
        progress.log(f"attempt-{spec['attempt']}")
        if time.monotonic() >= ends_at:
            break
        time.sleep(0.1)
    progress.result({"dataset": _FACTS, "resources": {}})


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(_STOPPED_ON_REQUEST)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
