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
        targets: int64 `[N]`.
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
        calibration: Temperature and thresholds.
        familiarity: What known images look like; None if they are too few.
    """

    images: JudgedImages
    calibration: Calibration
    familiarity: Familiarity | None

    @classmethod
    def of(cls, images: JudgedImages) -> Basis:
        """Fit everything that serving needs to know."""
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


def honesty(reported: JudgedImages, basis: Basis | None) -> dict[str, Any]:
    """Return the parts of an evaluation about confidence, JSON-ready.

    Args:
        reported: The images that the evaluation is about.
        basis: What the model answers with; where it was learned from the same images, figures
            after calibration are cross-fitted, and what thresholds and alarms do is not shown:
            it would only repeat what they were chosen by.
    """
    before = reliability(log_probabilities(reported.logits64), reported.targets64)
    if basis is None:
        shown = {"temperature": 1.0, "fitted_on": None, "images": 0, "cross_fitted": False}
        calibration = {**shown, "before": before.as_json(), "after": before.as_json()}
        return {"calibration": calibration, "abstention": None, "out_of_distribution": None}
    own = basis.images.split == reported.split
    logs = reported.log_scores(basis.calibration)
    fitted = logs
    if own:
        fitted = cross_fitted(reported.logits64, reported.targets64, reported.folds.numpy())
    return {
        "calibration": {
            "temperature": basis.calibration.temperature,
            "fitted_on": basis.calibration.fitted_on,
            "images": basis.calibration.images,
            "cross_fitted": own,
            "before": before.as_json(),
            "after": reliability(fitted, reported.targets64).as_json(),
        },
        "abstention": [
            _budget(budget, basis.calibration, None if own else (logs, reported.targets64))
            for budget in BUDGETS
        ],
        "out_of_distribution": _alarms(reported, basis.familiarity, own),
    }


def _budget(
    max_error: float,
    calibration: Calibration,
    measured: tuple[NDArray[np.float64], NDArray[np.int64]] | None,
) -> dict[str, Any]:
    """Return what an error budget costs, and what was measured of it on other images."""
    level = calibration.level_for(max_error)
    row: dict[str, Any] = {"max_error": max_error, "threshold": level and level.threshold}
    row["coverage"] = level.coverage if level else 0.0
    row["error_bound"] = level and level.error_bound
    if level is None or measured is None:
        return {**row, "measured": None}
    logs, targets = measured
    answered = np.exp(logs.max(axis=1)) > level.threshold
    errors = int((logs.argmax(axis=1) != targets)[answered].sum())
    count = int(answered.sum())
    found = {"images": len(targets), "answered": count, "errors": errors}
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
