"""What a published version is worth on a data set: nothing of it is chosen on these images.

Temperature, thresholds and what known images look like are those that the artifact has. Where the
images are the very ones that these were learned from, figures are cross-fitted or left out, as at
publication.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.manifest import ImageEntry
from jobs.evaluation.calibrating import log_probabilities
from jobs.evaluation.errors import ClassesUnknown
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.judged_labels import Thresholds
from jobs.evaluation.matching import ClassMatch
from jobs.tasks.classification import Classification
from jobs.tasks.multilabel import Multilabel
from models_cache.artifacts import ArtifactFacts
from models_cache.calibration import Calibration
from models_cache.novelty import Familiarity, judge

_MOST_NAMES = 10  # in an error


@dataclass(frozen=True, eq=False)
class Published:
    """What an artifact brings to an evaluation besides its answers.

    Args:
        facts: Of the artifact.
        familiarity: What known images look like; None if it does not say.
        tuned_here: Whether the reported images are those that its calibration was fitted on.
    """

    facts: ArtifactFacts
    familiarity: Familiarity | None
    tuned_here: bool

    def basis(self, reported: JudgedImages) -> Basis | None:
        """Return what it answers with; None where it has no calibration."""
        if self.facts.calibration is None:
            return None
        own = reported if self.tuned_here else None
        return Basis(own, self.facts.calibration, self.familiarity)


def evaluation_of(published: Published, reported: JudgedImages) -> dict[str, Any]:
    """Return the evaluation of a version, JSON-ready, as its publication makes it.

    Args:
        published: The version.
        reported: Images whose targets are of its classes, at least one.
    """
    facts, basis = published.facts, published.basis(reported)
    if facts.thresholds is None:
        return Classification(facts.classes).evaluation(reported, basis)
    chosen_on = "unknown" if facts.calibration is None else facts.calibration.fitted_on
    thresholds = Thresholds(facts.thresholds, chosen_on)
    return Multilabel(facts.classes).evaluation(reported, basis, thresholds)


def metrics_of(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a job by name, such as `test/accuracy_top1`."""
    names = (
        "accuracy_top1", "accuracy_top5", "mean_average_precision", "exact_match", "micro_f1",
        "macro_f1", "loss",
    )  # fmt: skip
    found = {name: evaluation[name] for name in names if evaluation.get(name) is not None}
    found["ece"] = evaluation["calibration"]["after"]["ece"]
    return {f"{evaluation['split']}/{name}": value for name, value in found.items()}


def require_known(match: ClassMatch, images: Sequence[ImageEntry]) -> None:
    """Raise `ClassesUnknown` unless some image has a class that the model knows."""
    known = set(match.dataset) - set(match.unknown)
    if not any(match.dataset[label] in known for image in images for label in image.labels):
        raise ClassesUnknown(len(images), _few(match.model), _few(match.dataset))


def unknown_classes(match: ClassMatch, images: Sequence[ImageEntry]) -> list[dict[str, Any]]:
    """Return the classes that the model lacks, and how many of the images have each."""
    counts = Counter(name for image in images for name in match.unknown_of(image))
    return [{"class": name, "images": counts[name]} for name in match.unknown]


def said_of_strangers(
    match: ClassMatch,
    images: Sequence[ImageEntry],
    outputs: tuple[NDArray[np.float32], NDArray[np.float32]],
    published: Published,
) -> list[dict[str, Any]]:
    """Return what the model says of images of classes that it lacks, by class.

    Args:
        match: Whose classes.
        images: N of them, each of one class that the model lacks.
        outputs: Logits `[N, C]` and features `[N, D]`.
        published: The version.
    """
    logits, features = outputs
    calibration = published.facts.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    logs = log_probabilities(logits.astype(np.float64) / temperature)
    guesses, sure = logs.argmax(axis=1), np.exp(logs.max(axis=1))
    strange = None
    if published.familiarity is not None and images:
        strange = judge([published.familiarity] * len(images), features)[1]
    rows = []
    for counted in unknown_classes(match, images):
        own = np.array([counted["class"] in match.unknown_of(image) for image in images], bool)
        called = Counter(match.model[guess] for guess in guesses[own].tolist())
        shown = dict(sorted(called.items(), key=lambda item: (-item[1], item[0])))
        row = {**counted, "predicted": shown, "mean_score": None, "out_of_distribution": None}
        if own.any():
            row["mean_score"] = float(sure[own].mean())
            row["out_of_distribution"] = None if strange is None else int(strange[own].sum())
        rows.append(row)
    return rows


def is_tuned_on(
    calibration: Calibration | None, lineage: dict[str, Any], digest: str, split: str
) -> bool:
    """Tell whether a calibration was fitted on this split of this data set."""
    if calibration is None or lineage.get("dataset_digest") != digest:
        return False
    return calibration.fitted_on == split


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    left = len(names) - _MOST_NAMES
    return f"{shown} and {left} more" if left > 0 else shown
