"""What the worker tells an ingest child, as JSON in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.datasets.decoding import DecodePlan
from jobs.datasets.limits import IngestLimits
from jobs.datasets.split import VAL_FRACTION
from models_cache.preprocessing import Interpolation


@dataclass(frozen=True)
class IngestSpec:
    """What the worker asks for.

    Args:
        attempt_folder: Holds the progress file, and our scratch folder while we run.
        data_folder: Root of all state.
        archive_sha256: Blob of the upload.
        parent_manifest_sha256: Blob of the version whose images are kept.
        limits: Bounds of the upload.
        resize_px: Shorter side of the packed pixels.
        interpolation: Kernel of that resize.
        corrections: Whether the upload says what images of its parent really show.
        unlabelled: Whether images have no labels, wherever they lie.
        val_fraction: Share of each class that is held out if the upload does not say.
        faults: Plan of named points to fail at, for tests.
        faults_folder: Where fired points are marked.
    """

    attempt_folder: Path
    data_folder: Path
    archive_sha256: str
    parent_manifest_sha256: str | None
    limits: IngestLimits
    resize_px: int
    interpolation: Interpolation
    corrections: bool
    unlabelled: bool
    val_fraction: float
    faults: str
    faults_folder: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IngestSpec:
        """Read the worker's JSON; what is missing has its default."""
        return cls(
            attempt_folder=Path(value["attempt_folder"]),
            data_folder=Path(value["data_folder"]),
            archive_sha256=value["archive_sha256"],
            parent_manifest_sha256=value.get("parent_manifest_sha256"),
            limits=IngestLimits.from_json(value.get("limits", {})),
            resize_px=value.get("resize_px", 256),
            interpolation=value.get("interpolation", "bilinear"),
            corrections=value.get("corrections", False),
            unlabelled=value.get("unlabelled", False),
            val_fraction=value.get("val_fraction", VAL_FRACTION),
            faults=value.get("faults", ""),
            faults_folder=value.get("faults_folder", value["attempt_folder"]),
        )

    def decode_plan(self) -> DecodePlan:
        """Return how the images are decoded."""
        return DecodePlan(
            self.limits, self.resize_px, self.interpolation, self.faults, self.faults_folder
        )
