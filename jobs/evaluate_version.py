"""A job of its own: what a published version is worth on the labelled images of a data set.

The predictor of serving answers; its outputs are on disk batch by batch, so that the next attempt
goes on behind the last one. Then the images are judged as at publication.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.asked_images import Answer, AskedImages
from jobs.datasets.loading import CHECKED_AT_INGEST
from jobs.datasets.manifest import SPLITS, TEST, TRAIN, UNLABELLED, VAL, ImageEntry, Manifest
from jobs.errors import DatasetUnlabelled
from jobs.evaluation.errors import SplitEmpty, TaskMismatch
from jobs.evaluation.matching import ClassMatch
from jobs.evaluation.plots import plots
from jobs.evaluation.verdict import (
    Published,
    evaluation_of,
    is_tuned_on,
    metrics_of,
    require_known,
    said_of_strangers,
    unknown_classes,
)
from jobs.progress import ProgressWriter
from jobs.training.device import peak_memory
from jobs.training.evaluate import Outputs
from jobs.training.interruption import Interruption
from jobs.training.judging import judged_images
from models_cache import durable
from models_cache.artifacts import (
    EVALUATION_FILE,
    FAMILIARITY_FILE,
    MULTILABEL,
    Artifact,
    read_familiarity,
)
from models_cache.blobs import BlobStore
from models_cache.errors import BlobMissing, GraftError
from models_cache.novelty import Familiarity
from models_cache.served_models import Model

ALL = "all"  # the name of a split that is none
_OUTPUTS_NAME = "outputs.jsonl"
_MOST_CLASSES = 100  # named in a result; all are in the file
_DEFAULTS = (TEST, VAL)  # the first that has images, else all of them


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """The spec file of an attempt.

    Args:
        run_folder: Folder of the job: outputs and results outlive the attempt.
        data_folder: Root of all state.
        manifest_sha256: Blob of the dataset's manifest.
        artifact: Digest of the model.
        split: Whose images; None for the first of `test`, `val` and all that has some.
        learned_from: Blob of the manifest of the model's own dataset; None if it is not known.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        threads: CPU threads of a forward pass, and images decoded at once.
    """

    run_folder: Path
    data_folder: Path
    manifest_sha256: str
    artifact: str
    split: str | None
    learned_from: str | None
    device: str
    threads: int

    @classmethod
    def load(cls, path: Path) -> EvaluateSpec:
        """Read the spec file that the worker wrote."""
        value: dict[str, Any] = json.loads(path.read_bytes())
        return cls(
            run_folder=Path(value["run_folder"]),
            data_folder=Path(value["data_folder"]),
            manifest_sha256=value["manifest_sha256"],
            artifact=value["artifact"],
            split=value["parameters"].get("split"),
            learned_from=value["learned_from"],
            device=value["device"],
            threads=value["threads"],
        )


def evaluate_version(
    spec: EvaluateSpec, progress: ProgressWriter, interruption: Interruption
) -> dict[str, Any]:
    """Judge a version by the images of a dataset, and return the result line.

    Raises:
        DatasetUnlabelled, SplitEmpty, TaskMismatch, ClassesUnknown: The images say nothing of it.
        BlobMissing, ArtifactError, WeightsError: The model cannot be used any more.
        ImageError, ModelUnhealthy: It has no answer to an image; figures of the others would lie.
        StoppedOnRequest: SIGTERM arrived; the next attempt goes on behind the last batch.
        TimeLimitTooShort: The time is over.
    """
    interruption.phase = "load"
    progress.phase("load")
    asked = AskedImages(spec.data_folder, spec.device, spec.threads, CHECKED_AT_INGEST)
    manifest = Manifest.load(asked.blobs, spec.manifest_sha256)
    split, images = chosen_images(manifest, spec.split)
    with asked.predictor.pin(spec.artifact) as model:
        artifact = model.head.artifact
        match = _matched(artifact, manifest)
        require_known(match, images)
        interruption.phase = "predict"
        progress.phase("predict")
        outputs = _outputs(spec, asked, model, images, (progress, interruption))
    interruption.phase = "evaluate"
    progress.phase("evaluate")
    facts = artifact.facts
    tuned_here = is_tuned_on(facts.calibration, facts.lineage, manifest.digest, split)
    published = Published(facts, _familiarity(asked.blobs, artifact), tuned_here)
    evaluation, about = _judged(published, match, (split, images), outputs)
    seen = _seen(asked.blobs, spec.learned_from, images)
    if seen is not None and seen[TRAIN]:
        told = f"the model learned from {seen[TRAIN]} of the {len(images)} images"
        progress.warning("evaluated-on-training-images", told)
    about |= {"images_of_its_own_data": seen, "tuned_on_these_images": tuned_here}
    about["set_aside_images"] = len(images) - evaluation["images"]
    documents = {
        EVALUATION_FILE: durable.canonical_json({**evaluation, **about}),
        **plots(evaluation, None),
    }
    for name, data in documents.items():
        durable.write_bytes(spec.run_folder / name, data, point="evaluation")
    (spec.run_folder / _OUTPUTS_NAME).unlink()
    return {
        "metrics": metrics_of(evaluation),
        "split": split,
        "images": evaluation["images"],
        "accuracy_interval_95": evaluation.get("accuracy_interval_95"),
        **about,
        "unknown_classes": [
            {name: row[name] for name in ("class", "images")}
            for row in about["unknown_classes"][:_MOST_CLASSES]
        ],
        "absent_classes": about["absent_classes"][:_MOST_CLASSES],
        "files": list(documents),
        "resources": peak_memory(asked.device),
    }


def chosen_images(manifest: Manifest, split: str | None) -> tuple[str, tuple[ImageEntry, ...]]:
    """Return which images are meant: the name of their split, and them.

    Args:
        manifest: Of the dataset.
        split: `train`, `val` or `test`; None for the first of `test`, `val` and all that has some.

    Raises:
        DatasetUnlabelled: Nothing is known of them.
        SplitEmpty: There is none.
    """
    if manifest.task == UNLABELLED:
        raise DatasetUnlabelled(len(manifest.images))
    if split is None:
        there = (name for name in _DEFAULTS if manifest.of_split(name))
        split = next(there, ALL)
    images = manifest.images if split == ALL else manifest.of_split(split)
    if not images:
        counts = Counter(image.split for image in manifest.images)
        said = ", ".join(f"{counts[name]} in {name}" for name in SPLITS if counts[name])
        raise SplitEmpty(split, said)
    return split, images


def _matched(artifact: Artifact, manifest: Manifest) -> ClassMatch:
    if artifact.facts.task != manifest.task:
        raise TaskMismatch(artifact.facts.task, manifest.task)
    return ClassMatch(artifact.facts.classes, manifest.classes)


def _outputs(
    spec: EvaluateSpec,
    asked: AskedImages,
    model: Model,
    images: Sequence[ImageEntry],
    told: tuple[ProgressWriter, Interruption],
) -> Outputs:
    """Return what the model says of N images; what an earlier attempt asked is not asked again."""
    path = spec.run_folder / _OUTPUTS_NAME
    asked.answer_into(path, model, images, lambda image, answer: _row(image, answer, model), told)
    logits, features = [], []
    with path.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            logits.append(_unpacked(row["logits"]))
            features.append(_unpacked(row["features"]))
    return Outputs(_stacked(features), _stacked(logits))


def _row(image: ImageEntry, answer: Answer, model: Model) -> dict[str, Any]:
    if isinstance(answer, GraftError):
        raise answer
    logits = answer.logits * np.float32(model.head.temperature)  # as the network gave them
    return {"image": image.id, "logits": _packed(logits), "features": _packed(answer.features)}


def _judged(
    published: Published,
    match: ClassMatch,
    chosen: tuple[str, Sequence[ImageEntry]],
    outputs: Outputs,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the evaluation on the images that the model can be right about, and what was not."""
    split, images = chosen
    absent = {"absent_classes": match.absent}
    if published.facts.task == MULTILABEL:
        targets = torch.from_numpy(match.flags(images))
        evaluation = evaluation_of(published, judged_images(split, images, targets, outputs))
        return evaluation, {"unknown_classes": unknown_classes(match, images), **absent}
    known = np.array([match.knows(image) for image in images])
    own, others = _chosen(images, known), _chosen(images, ~known)
    targets = torch.from_numpy(match.indices(own))
    reported = judged_images(split, own, targets, _rows(outputs, known))
    evaluation = evaluation_of(published, reported)
    rest = _rows(outputs, ~known)
    arrays = rest.logits.numpy(), rest.features.numpy()
    said = said_of_strangers(match, others, arrays, published)
    return evaluation, {"unknown_classes": said, **absent}


def _seen(
    blobs: BlobStore, manifest_sha256: str | None, images: Sequence[ImageEntry]
) -> dict[str, int] | None:
    """Return how many images are the model's own, byte for byte, by their split there."""
    if manifest_sha256 is None:
        return None
    try:
        manifest = Manifest.load(blobs, manifest_sha256)
    except BlobMissing:  # deleted after the job was accepted
        return None
    split_of: dict[str, str] = {}
    for split in reversed(SPLITS):  # what was learned from counts as that, wherever else it is
        split_of |= {image.sha256: split for image in manifest.of_split(split)}
    counts = Counter(split_of.get(image.sha256) for image in images)
    return {split: counts[split] for split in SPLITS}


def _familiarity(blobs: BlobStore, artifact: Artifact) -> Familiarity | None:
    if FAMILIARITY_FILE not in artifact.files:
        return None
    return Familiarity.of(read_familiarity(blobs, artifact))


def _chosen(images: Sequence[ImageEntry], mask: NDArray[np.bool_]) -> list[ImageEntry]:
    return [image for image, taken in zip(images, mask.tolist(), strict=True) if taken]


def _rows(outputs: Outputs, mask: NDArray[np.bool_]) -> Outputs:
    taken = torch.from_numpy(mask)
    return Outputs(outputs.features[taken], outputs.logits[taken])


def _packed(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4")


def _stacked(rows: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
