"""A job of its own: what a model says of every image of a dataset, as a file.

The same predictor as in serving, in a child with the priority of a training. Images are decoded by
threads while the batch before them is computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.datasets.limits import IngestLimits
from jobs.datasets.manifest import ImageEntry, Manifest
from jobs.predictions_file import PREDICTIONS_NAME, TABLE_NAME, PredictionsFile, write_table
from jobs.progress import ProgressWriter
from jobs.training.device import peak_memory, set_up
from jobs.training.interruption import Interruption
from models_cache.answer_bodies import abstention_of, answer_body
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.blobs import BlobStore
from models_cache.decode import ImageLimits
from models_cache.devices import choose_device
from models_cache.errors import GraftError, ImageError, to_wire
from models_cache.predictor import Predictor
from models_cache.served_models import Model, Pixels

_BATCH_IMAGES = 32
_CHECKPOINT_SECONDS = 5.0  # between lines that say so; every batch is on disk
_CACHE_BYTES = 1  # one model is in use all the time, nothing else is kept


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
    device = choose_device(spec.device)
    set_up(device, spec.threads)
    predictor = Predictor(spec.data_folder, device, _CACHE_BYTES, spec.limits)
    blobs = BlobStore(spec.data_folder / "blobs")
    manifest = Manifest.load(blobs, spec.manifest_sha256)
    images = manifest.images if spec.split is None else manifest.of_split(spec.split)
    path = spec.run_folder / PREDICTIONS_NAME
    with (
        predictor.pin(spec.artifact) as model,
        PredictionsFile(path, [image.id for image in images]) as file,
    ):
        interruption.phase = "predict"
        progress.phase("predict")
        said_at = time.monotonic()
        for rows in _rows(spec, predictor, model, blobs, images[file.rows :]):
            file.append(rows)
            progress.progress("images", file.rows, len(images))
            if time.monotonic() - said_at > _CHECKPOINT_SECONDS:
                progress.checkpoint(file.rows)
                said_at = time.monotonic()
            interruption.poll()
    write_table(path, path.with_name(TABLE_NAME))
    counts = _counts(path)
    return {**counts, "files": [PREDICTIONS_NAME, TABLE_NAME], "resources": peak_memory(device)}


def _rows(
    spec: BatchSpec,
    predictor: Predictor,
    model: Model,
    blobs: BlobStore,
    images: Sequence[ImageEntry],
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one batch after the other; the next one is decoded meanwhile."""

    def decoded(image: ImageEntry) -> Pixels | ImageError:
        try:
            return predictor.preprocess(model, blobs.read(image.sha256))
        except ImageError as error:
            return error

    abstention = abstention_of(model, spec.max_error)
    batches = [images[i : i + _BATCH_IMAGES] for i in range(0, len(images), _BATCH_IMAGES)]
    with ThreadPoolExecutor(spec.threads, "decode") as decoders:
        ahead = [decoders.submit(decoded, image) for image in batches[0]] if batches else []
        for batch, following in zip(batches, (*batches[1:], ()), strict=True):
            found = [future.result() for future in ahead]
            ahead = [decoders.submit(decoded, image) for image in following]
            answers = _answers(predictor, model, found)
            yield [
                {**_about(image), **_said(answer, model, spec.top_k, abstention)}
                for image, answer in zip(batch, answers, strict=True)
            ]


def _answers(
    predictor: Predictor, model: Model, found: Sequence[Pixels | ImageError]
) -> list[ImageOutput | GraftError]:
    """Return what the model says of each image of a batch, or why it says nothing."""
    queued = [QueuedImage(model, item) for item in found if not isinstance(item, ImageError)]
    said = iter(predictor.forward(model.backbone_key, queued) if queued else ())
    return [item if isinstance(item, ImageError) else next(said) for item in found]


def _about(image: ImageEntry) -> dict[str, Any]:
    return {"image": image.id, "path": image.path, "split": image.split}


def _said(
    answer: ImageOutput | GraftError,
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
