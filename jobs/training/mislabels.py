"""Which labels are probably wrong, by what heads say that did not learn from the image.

With one label per image another one is suggested; with several, each label is judged by itself,
and what is found is one label of one image that is missing or one too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.diagnosis import Finding, paths_of, shown_image
from jobs.datasets.label_sets import joined
from jobs.datasets.manifest import ImageEntry, Manifest
from models_cache.artifacts import MULTILABEL

_CONFIDENT_FRACTION = 0.8  # of a class's mean probability; why: docs/experiments.md
_CONFIDENT_FRACTION_OF_SEVERAL = 1.0  # there are C times as many labels to be wrong about

Floats = NDArray[np.float64]


def mislabels(manifest: Manifest, logits: Tensor, train: Tensor) -> Iterable[Finding]:
    """Yield the finding `likely-mislabelled`, if there is anything to tell.

    Args:
        manifest: The dataset.
        logits: Of heads that did not learn from the image, `[N, C]`.
        train: Positions of the images that heads learned from.
    """
    judges = np.zeros(len(logits), dtype=bool)
    judges[train.numpy()] = True
    several = manifest.task == MULTILABEL
    fact, items = (_labels if several else _classes)(manifest, logits.double(), judges)
    if items:
        yield Finding("likely-mislabelled", fact, items)


def suspicion(
    probabilities: Floats, labels: NDArray[np.int64], judges: NDArray[np.bool_], fraction: float
) -> Floats:
    """Return how much more probable another label is than the given one, `[N]`; 0: not suspicious.

    A class's threshold is a fraction of the mean probability that images of that label get. An
    image is told if another class is over its threshold and more probable than its own label.

    Args:
        probabilities: Of heads that did not learn from the image, `[N, C]`.
        labels: As given, `[N]`.
        judges: Which images the thresholds come from, `[N]`: those that heads learned from.
        fraction: That of the thresholds.

    Source:
        Northcutt et al. 2021, "Confident Learning", arXiv:1911.00068, section 3.1, ranked by
        normalised margin; the paper's thresholds (a fraction of 1) miss more where an image has one
        label (docs/experiments.md).
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    counts = np.bincount(labels[judges], minlength=probabilities.shape[1])
    sums = np.bincount(labels[judges], weights=own[judges], minlength=probabilities.shape[1])
    thresholds = fraction * sums / np.maximum(counts, 1)
    others = np.where(probabilities >= thresholds, probabilities, 0.0)
    others[rows, labels] = 0.0
    margin: Floats = np.maximum(others.max(axis=1) - own, 0.0)
    return margin


def _classes(
    manifest: Manifest, logits: Tensor, judges: NDArray[np.bool_]
) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """Return what is found, in words and by image, where each has one label."""
    probabilities = logits.softmax(dim=1).numpy()
    labels = np.array([image.label for image in manifest.images])
    found = _descending(suspicion(probabilities, labels, judges, _CONFIDENT_FRACTION))
    images = [manifest.images[i] for i in found]
    likelier = [int(probabilities[i].argmax()) for i in found]
    items = [
        shown_image(
            manifest,
            image,
            suggested=manifest.classes[other],
            suggested_probability=round(float(probabilities[i, other]), 4),
            label_probability=round(float(probabilities[i, image.label]), 4),
        )
        for i, image, other in zip(found, images, likelier, strict=True)
    ]
    return f"{len(items)} of {len(labels)} labels are probably wrong ({paths_of(images)})", items


def _labels(
    manifest: Manifest, logits: Tensor, judges: NDArray[np.bool_]
) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """Return what is found, in words and by image and class, where an image may have several.

    Each class is a choice of two, its absence and its presence, judged as any other choice.
    """
    present = logits.sigmoid().numpy()
    given = np.zeros(present.shape, dtype=np.int64)
    for row, image in enumerate(manifest.images):
        given[row, list(image.labels)] = 1
    by_class = np.stack(
        [
            suspicion(
                np.stack([1 - chance, chance], axis=1),
                given[:, i],
                judges,
                _CONFIDENT_FRACTION_OF_SEVERAL,
            )
            for i, chance in enumerate(present.T)
        ],
        axis=1,
    )  # [N, C]
    found = [divmod(int(i), len(manifest.classes)) for i in _descending(by_class.reshape(-1))]
    items = [
        _shown_label(manifest, manifest.images[row], label, float(present[row, label]))
        for row, label in found
    ]
    images = [manifest.images[row] for row in dict.fromkeys(row for row, _ in found)]
    missing = sum(not given[place] for place in found)
    fact = (
        f"{missing} labels are probably missing and {len(found) - missing} probably wrong, of "
        f"{given.sum()} on {len(given)} images ({paths_of(images)})"
    )
    return fact, items


def _shown_label(
    manifest: Manifest, image: ImageEntry, label: int, chance: float
) -> dict[str, Any]:
    """Return a label of an image that is contradicted, and what its labels would be without."""
    is_given = label in image.labels
    changed = set(image.labels) ^ {label}
    return shown_image(
        manifest,
        image,
        **{"class": manifest.classes[label], "given": is_given},
        suggested=joined(manifest.classes[i] for i in changed),
        suggested_probability=round(1 - chance if is_given else chance, 4),
        label_probability=round(chance if is_given else 1 - chance, 4),
    )


def _descending(margins: Floats) -> NDArray[np.int64]:
    suspicious = np.flatnonzero(margins > 0)
    order: NDArray[np.int64] = suspicious[np.argsort(-margins[suspicious], kind="stable")]
    return order
