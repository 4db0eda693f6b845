"""The child that fetches weights: `python -m jobs.download SPEC.json`. Imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jobs import trail
from jobs.eta import PhaseEstimate
from jobs.progress import FILE_NAME, ProgressWriter
from models_cache import faults
from models_cache.catalogue import Catalogue
from models_cache.egress_policy import EgressPolicy
from models_cache.errors import GraftError
from models_cache.weights import WeightsVault, obtain


def download(spec: dict[str, Any], progress: ProgressWriter) -> None:
    """Fetch and verify the weights that a spec names, and report them as the result."""
    catalogue = Catalogue.load(extra_files=[Path(path) for path in spec["weights_catalogues"]])
    vault = WeightsVault(
        Path(spec["data_folder"]) / "weights",
        spec["weights_sources"],
        offline=spec["offline"],
        egress=EgressPolicy.of(**spec["egress"]),
    )

    def report(done_bytes: int, total_bytes: int | None) -> None:
        progress.progress("bytes", done_bytes, total_bytes)

    def warn(message: str) -> None:
        progress.warning("weights-fallback", message)

    progress.phase("weights")
    candidates = catalogue.candidates(spec["architecture"], spec["weights"], have=vault.have)
    info, path = obtain(vault, candidates, report, warn)
    progress.result({"weights": info.name, "file": info.file, "size_bytes": path.stat().st_size})


def main(spec_path: str) -> None:
    """Do what the spec says; an error that can be told is the last line."""
    spec = json.loads(Path(spec_path).read_text())
    faults.arm(spec["faults"], Path(spec["faults_folder"]))
    progress = ProgressWriter(Path(spec["attempt_folder"]) / FILE_NAME, PhaseEstimate())
    with trail.followed(spec):
        try:
            download(spec, progress)
        except GraftError as error:
            progress.error(error)


if __name__ == "__main__":
    main(sys.argv[1])
