"""Images that a model is judged by, and what is fitted on them: calibration and familiarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.evaluation.calibrating import (
    Reliability,
    cross_fitted,
    fit_temperature,
    log_probabilities,
    reliability,
)
from jobs.evaluation.selective import CERTAINTY, levels
from models_cache.calibration import Calibration
from models_cache.novelty import FALSE_ALARMS, Familiarity, fit_familiarity, judge

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2)  # error budgets whose outcome an evaluation shows


@dataclass(frozen=True, eq=False)
class JudgedImages:
    """Images that a model did not learn from, and what it made of them.

    Args:
        split: Which images these are.
        ids: Dataset's ids of the N images.
        targets: int64 `[N]`; with several labels float32 `[N, C]`, 0 or 1.
        logits: float32 `[N, C]`.
        features: float32 `[N, D]`, the input of the head.
        folds: int64 `[N]`; copies of an image are in one fold.
    """

    split: str
    ids: Sequence[str]
    targets: Tensor
    logits: Tensor
    features: Tensor
    folds: Tensor

    @cached_property
    def logits64(self) -> NDArray[np.float64]:
        """The logits in double precision."""
        return self.logits.double().numpy()

    @cached_property
    def targets64(self) -> NDArray[np.int64]:
        """The targets as an array."""
        return self.targets.numpy()

    def log_scores(self, calibration: Calibration | None) -> NDArray[np.float64]:
        """Return the logarithms of what serving would answer, `[N, C]`."""
        temperature = 1.0 if calibration is None else calibration.temperature
        return log_probabilities(self.logits64 / temperature)


@dataclass(frozen=True, eq=False)
class Basis:
    """What serving knows besides the network, and the images that it was learned from.

    Args:
        images: None of them may have been learned from, or there would be nothing honest to say.
            None if they are no part of what is reported.
        calibration: Temperature and thresholds.
        familiarity: What known images look like; None if they are too few.
    """

    images: JudgedImages | None
    calibration: Calibration
    familiarity: Familiarity | None

    @classmethod
    def of(cls, images: JudgedImages) -> Basis:
        """Fit everything that serving needs to know of a model with one label per image."""
        temperature = fit_temperature(images.logits64, images.targets64)
        logs = log_probabilities(images.logits64 / temperature)
        calibration = Calibration(
            temperature=temperature,
            fitted_on=images.split,
            images=len(images.ids),
            certainty=CERTAINTY,
            levels=levels(np.exp(logs.max(axis=1)), logs.argmax(axis=1) == images.targets64),
        )
        return cls(images, calibration, fit_familiarity(images.features, images.folds))

    def is_of(self, reported: JudgedImages) -> bool:
        """Tell whether it was learned from the very images that are reported."""
        return self.images is not None and self.images.split == reported.split


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of N images, whole: `confidence` float64 `[N]`, and `right` bool `[N]`."""

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


def honesty(reported: JudgedImages, basis: Basis | None) -> dict[str, Any]:
    """Return the parts of an evaluation about confidence, JSON-ready.

    Args:
        reported: The images that the evaluation is about.
        basis: What the model answers with.
    """
    before = reliability(log_probabilities(reported.logits64), reported.targets64)
    if basis is None:
        return nothing_honest(before)
    logs = reported.log_scores(basis.calibration)
    fitted = logs
    if basis.is_of(reported):
        fitted = cross_fitted(reported.logits64, reported.targets64, reported.folds.numpy())
    after = reliability(fitted, reported.targets64)
    answers = Answers(np.exp(logs.max(axis=1)), logs.argmax(axis=1) == reported.targets64)
    return shown_honesty(reported, basis, (before, after), answers)


def nothing_honest(before: Reliability) -> dict[str, Any]:
    """Return what can be said of confidence where no image was held out."""
    shown = {"temperature": 1.0, "fitted_on": None, "images": 0, "cross_fitted": False}
    calibration = {**shown, "before": before.as_json(), "after": before.as_json()}
    return {"calibration": calibration, "abstention": None, "out_of_distribution": None}


def shown_honesty(
    reported: JudgedImages,
    basis: Basis,
    calibrated: tuple[Reliability, Reliability],
    answers: Answers,
) -> dict[str, Any]:
    """Return what can be said of confidence, JSON-ready.

    Args:
        reported: The images that the evaluation is about.
        basis: What the model answers with; where it was learned from the same images, what
            thresholds and alarms do is not shown: it would only repeat what they were chosen by.
        calibrated: Without and with the temperature; the latter cross-fitted on the same images.
        answers: What is compared with error budgets.
    """
    own, (before, after) = basis.is_of(reported), calibrated
    return {
        "calibration": {
            "temperature": basis.calibration.temperature,
            "fitted_on": basis.calibration.fitted_on,
            "images": basis.calibration.images,
            "cross_fitted": own,
            "before": before.as_json(),
            "after": after.as_json(),
        },
        "abstention": [
            _budget(budget, basis.calibration, None if own else answers) for budget in BUDGETS
        ],
        "out_of_distribution": _alarms(reported, basis.familiarity, own),
    }


def _budget(max_error: float, calibration: Calibration, measured: Answers | None) -> dict[str, Any]:
    """Return what an error budget costs, and what was measured of it on other images."""
    level = calibration.level_for(max_error)
    row: dict[str, Any] = {"max_error": max_error, "threshold": level and level.threshold}
    row["coverage"] = level.coverage if level else 0.0
    row["error_bound"] = level and level.error_bound
    if level is None or measured is None:
        return {**row, "measured": None}
    answered = measured.confidence > level.threshold
    errors, count = int((~measured.right)[answered].sum()), int(answered.sum())
    found = {"images": len(answered), "answered": count, "errors": errors}
    return {**row, "measured": {**found, "error": errors / count if count else None}}


def _alarms(
    reported: JudgedImages, familiarity: Familiarity | None, own: bool
) -> dict[str, Any] | None:
    if familiarity is None:
        return None
    flagged = None
    if not own:
        each = [familiarity] * len(reported.features)
        flagged = float(judge(each, reported.features.numpy())[1].mean())
    known = len(familiarity.novelties)
    return {"known_images": known, "false_alarms_at_most": FALSE_ALARMS, "measured": flagged}
