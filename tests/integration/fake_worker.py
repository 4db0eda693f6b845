"""A worker as small as can be: one train and one ingest attempt that wait, on a real executor.

    python -m tests.integration.fake_worker FOLDER

The folder `FOLDER/<its process number>` gets the attempts.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from jobs.executors.local import LocalExecutor
from tests.integration.attempts import write_attempt

MODULE = "tests.integration.attempts"


def stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, stop)
    executor = LocalExecutor(
        os.environ, target=f"{MODULE}:main", preload=(), modules={"ingest": MODULE}
    )
    mine = folder / str(os.getpid())
    try:
        train = write_attempt(mine / "train", "multiply", then="wait", program=False)
        ingest = write_attempt(mine / "ingest", "wait", "ingest")
        handles = [executor.start(train), executor.start(ingest)]
        while True:
            for handle in handles:
                executor.poll(handle)
            executor.wait(1.0)
    finally:
        executor.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
