"""What is wrong with a data set as far as features and out-of-fold predictions tell.

Runs once the head is fitted and costs next to nothing then. What is found goes into the attempt's
folder, to the worker for the data set's report, into the log, and can end the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.diagnosis import (
    INFO,
    NEVER,
    Finding,
    as_severe_as,
    paths_of,
    shown_group,
    shown_image,
)
from jobs.datasets.manifest import Manifest
from jobs.datasets.near_duplicates import Groups
from jobs.errors import DataBlocked
from jobs.training.head import HeadFit
from jobs.training.mislabels import mislabels
from jobs.training.outcome import Ready
from jobs.training.place import Place
from models_cache.durable import canonical_json

FILE_NAME = "data_report.json"
FORMAT = 1

_NEIGHBOURS = 10
_OUTLIER_DEVIATIONS = 3.0
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_SIMILAR_FRACTION = 0.35  # of the usual distance to the nearest neighbours
_FEWEST_IMAGES = 50  # below this "usual" says nothing
_MOST_IMAGES = 20_000  # all pairs are compared: 1e12 operations with 1280 features
_CHUNK_SIMILARITIES = 1 << 23  # in memory at once: 32 MiB


@dataclass(frozen=True)
class Neighbourhood:
    """How close each image is to others.

    Args:
        distances: Mean cosine distance to the nearest images, float32 `[N]`.
        groups: Positions of images that are much closer than usual, each of at least two.
    """

    distances: NDArray[np.float32]
    groups: list[list[int]]


def require_sound_upload(place: Place) -> None:
    """End the job if the upload has findings that it must not have.

    Raises:
        DataBlocked: It has some of the severity that the job names.
    """
    spec = place.spec
    if spec.block_on != NEVER and spec.report_sha256 is not None:
        report = json.loads(place.blobs.read(spec.report_sha256))
        _block(place, report.get("findings", []))  # reports of older versions have none


def examine(ready: Ready, features: Tensor, fit: HeadFit) -> None:
    """Find what features tell, write it down, and end the job if it must not be so.

    Args:
        ready: What the attempt settled.
        features: Of all images, float32 `[N, D]`.
        fit: The head that was fitted on the training images.

    Raises:
        DataBlocked: Something of the severity that the job names was found.
    """
    place, manifest = ready.place, ready.data.dataset.manifest
    train = torch.from_numpy(ready.data.train)
    with torch.inference_mode():
        logits = fit.head(features)  # [N, C]
        logits[train] = fit.out_of_fold_logits
        findings = [
            *mislabels(manifest, logits, train),
            *odd_features(manifest, features, place.interruption.poll),
        ]
    told = [finding.as_json() for finding in findings]
    data = canonical_json({"format": FORMAT, "examined": _examined(ready), "findings": told})
    (place.spec.attempt_folder / FILE_NAME).write_bytes(data)
    place.progress.report(place.blobs.put_bytes(data).sha256)
    for finding in findings:
        if finding.severity != INFO:
            place.progress.warning(finding.code, finding.message)
    _block(place, told)


def neighbourhood(features: Tensor, poll: Callable[[], None]) -> Neighbourhood:
    """Compare all images with all others by the cosine of their features, some rows at a time.

    Args:
        features: float32 `[N, D]`, N above ten.
        poll: Called after some rows; may raise to leave.
    """
    directions = F.normalize(features.float(), dim=1)
    count = len(directions)
    rows_at_once = max(1, _CHUNK_SIMILARITIES // count)
    chunks = [slice(start, start + rows_at_once) for start in range(0, count, rows_at_once)]
    nearest = torch.empty(count, _NEIGHBOURS)
    for rows in chunks:
        nearest[rows] = _similarities(directions, rows).topk(_NEIGHBOURS, dim=1).values
        poll()
    distances = 1 - nearest.mean(dim=1)
    close = 1 - _SIMILAR_FRACTION * distances.median().item()
    groups = Groups(count)
    for rows in chunks:
        if (nearest[rows, 0] < close).all():
            continue
        are_close = (_similarities(directions, rows) >= close).numpy()  # [B, N]
        for row in np.flatnonzero(are_close.any(axis=1)).tolist():
            one = rows.start + row
            groups.join(one, groups.apart(one, np.flatnonzero(are_close[row])))
        poll()
    return Neighbourhood(distances.numpy(), groups.of_several())


def outliers(distances: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return positions of images that are far from all others, the farthest first.

    Args:
        distances: To their nearest neighbours, `[N]`.
    """
    median = np.median(distances)
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(distances - median))
    far = np.flatnonzero(distances > median + _OUTLIER_DEVIATIONS * deviation)
    order: NDArray[np.int64] = far[np.argsort(-distances[far], kind="stable")]
    return order


def _similarities(directions: Tensor, rows: slice) -> Tensor:
    """Return the cosines of some images to all, without those to themselves, `[B, N]`."""
    similar = directions[rows] @ directions.T
    places = torch.arange(rows.start, rows.start + len(similar))
    similar[torch.arange(len(similar)), places] = -1.0
    return similar


def odd_features(
    manifest: Manifest, features: Tensor, poll: Callable[[], None]
) -> Iterable[Finding]:
    """Yield what comparing all images with all others tells, or that they are too many for it.

    Args:
        manifest: The data set.
        features: Of its images, float32 `[N, D]`.
        poll: Called now and then; may raise to leave.
    """
    if len(features) > _MOST_IMAGES:
        fact = (
            f"similar images and outliers were not looked for: there are {len(features)} images, "
            f"and up to {_MOST_IMAGES} are compared with each other"
        )
        checks = ["similar-across-splits", "similar-images", "outliers"]
        yield Finding("not-compared", fact, [{"check": check} for check in checks])
    if not _FEWEST_IMAGES <= len(features) <= _MOST_IMAGES:
        return
    near = neighbourhood(features, poll)
    yield from _similar(manifest, near.groups)
    found = outliers(near.distances)
    if len(found):
        images = [manifest.images[i] for i in found]
        fact = f"{len(images)} of {len(features)} images resemble no others ({paths_of(images)})"
        items = [
            shown_image(manifest, image, distance=round(float(near.distances[i]), 4))
            for i, image in zip(found, images, strict=True)
        ]
        yield Finding("outliers", fact, items)


def _similar(manifest: Manifest, groups: Sequence[Sequence[int]]) -> Iterable[Finding]:
    """Yield findings of groups, but not of those that are copies of one file: ingest told these."""
    alike = [[manifest.images[i] for i in group] for group in groups]
    alike = [group for group in alike if len({image.sha256 for image in group}) > 1]
    leaking = [group for group in alike if len({image.split for image in group}) > 1]
    harmless = [group for group in alike if group not in leaking]
    for code, found, where in (
        ("similar-across-splits", leaking, "across splits"),
        ("similar-images", harmless, "within one split"),
    ):
        if found:
            shown = f"for example {paths_of(found[0])}"
            fact = (
                f"{len(found)} groups of images are nearly equal to the network {where} ({shown})"
            )
            yield Finding(code, fact, [shown_group(manifest, group) for group in found])


def _examined(ready: Ready) -> dict[str, Any]:
    """Say by whom the findings are made."""
    spec, weights = ready.place.spec, ready.backbone.weights
    return {
        "job": spec.lineage.get("job_id"),
        "backbone": spec.architecture,
        "weights": None if weights is None else weights["name"],
        "recipe": spec.recipe,
    }


def _block(place: Place, findings: Iterable[dict[str, Any]]) -> None:
    if severe := as_severe_as(findings, place.spec.block_on):
        told = ", ".join(f"{finding['code']} ({finding['count']})" for finding in severe)
        dataset_id = str(place.spec.lineage.get("dataset_id"))
        raise DataBlocked(dataset_id, place.spec.block_on, len(severe), told)
