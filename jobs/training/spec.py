"""What a training child is told, as values; `jobs.specs` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_cache.egress_policy import PUBLIC_ONLY, EgressPolicy


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The spec file of a fine-tuning attempt.

    Args:
        run_folder: Folder of the job; checkpoints are in it and outlive the attempt.
        attempt_folder: Folder of this attempt.
        data_folder: Root of all state.
        manifest_sha256: Blob of the dataset's manifest.
        architecture: Backbone.
        weights: Name of its weights, `DEFAULT`, or None for random ones.
        recipe: Name of the recipe.
        parameters: What the user set of it.
        seed: Of everything random.
        weights_sources: Folders or base URLs tried before the official one.
        weights_catalogues: JSON files that add weights.
        offline: Never open a connection for weights.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        threads: CPU threads.
        time_limit_seconds: Bound on training time over all attempts, if any.
        checkpoint_steps: Steps between checkpoints, if not one per epoch and minute.
        block_on: Severity of findings about the data that ends the job, or `never`.
        report_sha256: Blob of what ingest found, if there is one.
        lineage: Where the result comes from, recorded in the artifact.
        reproduce: The `job` that is repeated and its `receipt`, if that is what is asked for.
        egress: Where connections for weights may lead.
    """

    run_folder: Path
    attempt_folder: Path
    data_folder: Path
    manifest_sha256: str
    architecture: str
    weights: str | None
    recipe: str
    parameters: Mapping[str, Any]
    seed: int
    weights_sources: tuple[str, ...]
    weights_catalogues: tuple[Path, ...]
    offline: bool
    device: str
    threads: int
    time_limit_seconds: float | None
    checkpoint_steps: int | None
    block_on: str
    report_sha256: str | None
    lineage: Mapping[str, Any]
    reproduce: Mapping[str, Any] | None = None
    egress: EgressPolicy = PUBLIC_ONLY

    @classmethod
    def load(cls, path: Path) -> TrainSpec:
        """Read the spec file that the worker wrote."""
        value = json.loads(path.read_bytes())
        return cls(
            run_folder=Path(value["run_folder"]),
            attempt_folder=Path(value["attempt_folder"]),
            data_folder=Path(value["data_folder"]),
            manifest_sha256=value["dataset"]["manifest_sha256"],
            architecture=value["architecture"],
            weights=value["weights"],
            recipe=value["recipe"],
            parameters=value["parameters"],
            seed=value["seed"],
            weights_sources=tuple(value["weights_sources"]),
            weights_catalogues=tuple(map(Path, value["weights_catalogues"])),
            offline=value["offline"],
            device=value["device"],
            threads=value["threads"],
            time_limit_seconds=value["time_limit_seconds"],
            checkpoint_steps=value.get("checkpoint_steps"),
            block_on=value.get("block_on", "never"),
            report_sha256=value["dataset"].get("report_sha256"),
            lineage=value["lineage"],
            reproduce=value.get("reproduce"),
            egress=EgressPolicy.of(**value.get("egress", {})),
        )
