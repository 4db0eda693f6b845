"""The child that computes: `python -m jobs.run SPEC.json`, or `main` in a fork of the fork server.

Importing this module runs nothing: no tensor operation, no thread. A fork after either would
hang. The last line of the progress file says how the work ended; exit status 75 and no such line
means that SIGTERM stopped it after a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jobs import trail
from jobs.batch_predict import BatchSpec, predict_all
from jobs.evaluate_version import EvaluateSpec, evaluate_version
from jobs.exports.child import export
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.training.attempt import train
from jobs.training.engine_build import build
from jobs.training.interruption import EXIT_STATUS, Interruption, StoppedOnRequest
from jobs.training.race import race
from jobs.training.race_spec import RaceSpec
from jobs.training.spec import TrainSpec
from models_cache import faults
from models_cache.durable import raise_if_full
from models_cache.errors import GraftError


def main(spec_path: str) -> None:
    """Run the attempt that a spec file describes.

    Anything but a `GraftError` is a bug of ours: it leaves here, its traceback goes to stderr,
    which the worker keeps as the attempt's log, and the exit status is 1.
    """
    path = Path(spec_path)
    value = json.loads(path.read_bytes())
    faults.arm(value.get("faults", ""), Path(value.get("faults_folder", path.parent)))
    progress = ProgressWriter(Path(value["attempt_folder"]) / FILE_NAME)
    interruption = Interruption(value["time_limit_seconds"])
    interruption.listen()
    with trail.followed(value):
        try:
            progress.result(_work(value["kind"], path, progress, interruption))
        except GraftError as error:
            progress.error(error)
        except StoppedOnRequest:
            progress.log("stopped on request")
            sys.exit(EXIT_STATUS)


def _work(
    kind: str, path: Path, progress: ProgressWriter, interruption: Interruption
) -> dict[str, object]:
    try:
        if kind == "engine":
            return build(path, progress)
        if kind == "batch_predict":
            return predict_all(BatchSpec.load(path), progress, interruption)
        if kind == "evaluate":
            return evaluate_version(EvaluateSpec.load(path), progress, interruption)
        if kind == "export":
            return export(path, progress, interruption)
        if kind == "race":
            return race(RaceSpec.load(path), progress, interruption)
        return train(TrainSpec.load(path), progress, interruption)
    except OSError as error:
        raise_if_full(error, "training")
        raise


if __name__ == "__main__":
    main(sys.argv[1])
