"""A job of its own: what a model says of every image of a dataset, as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.asked_images import Answer, AskedImages
from jobs.datasets.limits import IngestLimits
from jobs.datasets.manifest import ImageEntry, Manifest
from jobs.predictions_file import PREDICTIONS_NAME, TABLE_NAME, write_table
from jobs.progress import ProgressWriter
from jobs.training.device import peak_memory
from jobs.training.interruption import Interruption
from models_cache.answer_bodies import abstention_of, answer_body
from models_cache.decode import ImageLimits
from models_cache.errors import GraftError, to_wire
from models_cache.served_models import Model


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The spec file of an attempt.

    Args:
        run_folder: Folder of the job: the file of predictions outlives the attempt.
        data_folder: Root of all state.
        manifest_sha256: Blob of the dataset's manifest.
        artifact: Digest of the model.
        split: Whose images; None for all.
        top_k: How many scores of each image; None for all.
        max_error: Error budget, between 0 and 1, if there is one.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        threads: CPU threads of a forward pass, and images decoded at once.
        limits: Images beyond them get an error instead of an answer.
    """

    run_folder: Path
    data_folder: Path
    manifest_sha256: str
    artifact: str
    split: str | None
    top_k: int | None
    max_error: float | None
    device: str
    threads: int
    limits: ImageLimits

    @classmethod
    def load(cls, path: Path) -> BatchSpec:
        """Read the spec file that the worker wrote."""
        value: dict[str, Any] = json.loads(path.read_bytes())
        return cls(
            run_folder=Path(value["run_folder"]),
            data_folder=Path(value["data_folder"]),
            manifest_sha256=value["manifest_sha256"],
            artifact=value["artifact"],
            device=value["device"],
            threads=value["threads"],
            limits=IngestLimits.from_json(value["limits"]).image,
            **{name: value["parameters"].get(name) for name in ("split", "top_k", "max_error")},
        )


def predict_all(
    spec: BatchSpec, progress: ProgressWriter, interruption: Interruption
) -> dict[str, Any]:
    """Predict what no earlier attempt did, and return the result line.

    Raises:
        BlobMissing, ArtifactError, WeightsError: The model cannot be used any more.
        StoppedOnRequest: SIGTERM arrived; the next attempt goes on behind the last line.
        TimeLimitTooShort: The time is over; the lines so far stay.
    """
    interruption.phase = "load"
    progress.phase("load")
    asked = AskedImages(spec.data_folder, spec.device, spec.threads, spec.limits)
    manifest = Manifest.load(asked.blobs, spec.manifest_sha256)
    images = manifest.images if spec.split is None else manifest.of_split(spec.split)
    path = spec.run_folder / PREDICTIONS_NAME
    with asked.predictor.pin(spec.artifact) as model:
        interruption.phase = "predict"
        progress.phase("predict")
        abstention = abstention_of(model, spec.max_error)

        def row_of(image: ImageEntry, answer: Answer) -> dict[str, Any]:
            return {**_about(image), **_said(answer, model, spec.top_k, abstention)}

        asked.answer_into(path, model, images, row_of, (progress, interruption))
    write_table(path, path.with_name(TABLE_NAME))
    counts = _counts(path)
    return {
        **counts,
        "files": [PREDICTIONS_NAME, TABLE_NAME],
        "resources": peak_memory(asked.device),
    }


def _about(image: ImageEntry) -> dict[str, Any]:
    return {"image": image.id, "path": image.path, "split": image.split}


def _said(
    answer: Answer,
    model: Model,
    top_k: int | None,
    abstention: dict[str, float | None] | None,
) -> dict[str, Any]:
    if isinstance(answer, GraftError):
        return {"error": to_wire(answer)}
    body = answer_body(answer, model, top_k, abstention)
    best = body["scores"][0]
    return {"label": best["label"], "score": best["score"], **body}


def _counts(path: Path) -> dict[str, int]:
    """Return how many images there are, and of how many the model says nothing, or nothing sure."""
    counts = {"images": 0, "failed": 0, "abstained": 0}
    with path.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            counts["images"] += 1
            counts["failed"] += "error" in row
            counts["abstained"] += row.get("abstained", False)
    return counts
