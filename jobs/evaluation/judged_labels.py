"""Images with any number of labels, and what is fitted on them: temperature, thresholds, bounds.

A label is a choice between absence and presence, so one temperature serves all C of them, fitted
on the cross-entropy of all labels of all images. An answer is the whole set of labels: it is right
if no label is missing and none too many, and error budgets count it as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.evaluation.calibrating import (
    Reliability,
    as_pairs,
    cross_fitted,
    fit_temperature,
    label_reliability,
    log_probabilities,
)
from jobs.evaluation.judged import Answers, Basis, JudgedImages, nothing_honest, shown_honesty
from jobs.evaluation.ranking import Scores, Truth, counted
from jobs.evaluation.selective import CERTAINTY, levels
from models_cache.calibration import Calibration, set_confidence
from models_cache.novelty import fit_familiarity

_UNSURE = 0.5  # the threshold of a class of which no image is known


@dataclass(frozen=True)
class Thresholds:
    """From which score on each class is a label.

    Args:
        values: C of them, each with the best F1 of its class.
        chosen_on: The split that they were chosen on.
    """

    values: tuple[float, ...]
    chosen_on: str

    @classmethod
    def chosen(cls, images: JudgedImages, calibration: Calibration | None) -> Thresholds:
        """Choose them on some images, by the scores that serving gives."""
        return cls(_best(label_scores(images, calibration), truth_of(images)), images.split)

    def claimed(self, scores: Scores) -> Truth:
        """Return which labels scores `[N, C]` claim, bool `[N, C]`."""
        return scores >= np.array(self.values)


def truth_of(images: JudgedImages) -> Truth:
    """Return which labels the images have, bool `[N, C]`."""
    truth: Truth = images.targets.numpy() > 0
    return truth


def label_scores(images: JudgedImages, calibration: Calibration | None) -> Scores:
    """Return what serving would answer, sigmoid(logits / temperature), `[N, C]`."""
    temperature = 1.0 if calibration is None else calibration.temperature
    return _present(log_probabilities(as_pairs(images.logits64) / temperature), images)


def label_basis(images: JudgedImages) -> Basis:
    """Fit everything that serving needs to know besides thresholds; compare `Basis.of`.

    Bounds are of answers that each come from thresholds chosen on the other folds: thresholds that
    have seen an image are a little too good on it.

    Args:
        images: None of them may have been learned from.
    """
    truth = truth_of(images)
    temperature = fit_temperature(as_pairs(images.logits64), _flat(truth))
    fitted = Calibration(temperature, images.split, len(images.ids), CERTAINTY, ())
    scores, folds = label_scores(images, fitted), images.folds.numpy()
    claimed = np.zeros_like(truth)
    for fold in np.unique(folds):
        held_out = folds == fold
        others = ~held_out if not held_out.all() else held_out  # one image alone cannot be split
        claimed[held_out] = scores[held_out] >= np.array(_best(scores[others], truth[others]))
    answers = answers_of(scores, claimed, truth)
    calibration = Calibration(
        temperature=temperature,
        fitted_on=images.split,
        images=len(images.ids),
        certainty=CERTAINTY,
        levels=levels(answers.confidence, answers.right),
    )
    return Basis(images, calibration, fit_familiarity(images.features, images.folds))


def answers_of(scores: Scores, claimed: Truth, truth: Truth) -> Answers:
    """Return the confidence in each set of labels, and whether it is exactly the true one.

    Args:
        scores: `[N, C]`.
        claimed: Which labels are answered, `[N, C]`.
        truth: Which are there, `[N, C]`.
    """
    return Answers(set_confidence(scores, claimed), (claimed == truth).all(axis=1))


def label_honesty(
    reported: JudgedImages, basis: Basis | None, thresholds: Thresholds
) -> dict[str, Any]:
    """Return the parts of an evaluation about confidence, JSON-ready.

    Args:
        reported: The images that the evaluation is about.
        basis: What the model answers with.
        thresholds: What it claims labels by.
    """
    before, after = _log_pairs(reported, basis)
    truth = _flat(truth_of(reported))
    if basis is None:
        return nothing_honest(label_reliability(before, truth))
    scores = label_scores(reported, basis.calibration)
    answers = answers_of(scores, thresholds.claimed(scores), truth_of(reported))
    calibrated = label_reliability(before, truth), label_reliability(after, truth)
    return shown_honesty(reported, basis, calibrated, answers)


def class_calibrations(
    reported: JudgedImages, basis: Basis | None
) -> list[tuple[Reliability, Reliability]]:
    """Return the calibration of each class, without and with the temperature, C pairs."""
    before, after = (
        logs.reshape(*reported.targets.shape, 2) for logs in _log_pairs(reported, basis)
    )
    truth = truth_of(reported).astype(np.int64)
    return [
        (
            label_reliability(before[:, i], truth[:, i]),
            label_reliability(after[:, i], truth[:, i]),
        )
        for i in range(truth.shape[1])
    ]


def best_threshold(scores: Scores, truth: Truth) -> float:
    """Return the score from which on a class is claimed so that F1 is best.

    In the middle between the last score that is claimed and the next one, since other images
    will lie between them; of equally good ones the highest.

    Args:
        scores: Of images that were not learned from, `[N]`, 0 to 1.
        truth: Which of them have the class, `[N]`.
    """
    hits, claims = counted(scores, truth)
    if not len(hits) or not hits[-1]:
        return _UNSURE
    best = int((2 * hits / (claims + hits[-1])).argmax())
    different = np.unique(scores)[::-1]
    below = different[best + 1] if best + 1 < len(different) else 0.0
    return float((different[best] + below) / 2)


def _best(scores: Scores, truth: Truth) -> tuple[float, ...]:
    return tuple(best_threshold(scores[:, i], truth[:, i]) for i in range(truth.shape[1]))


def _log_pairs(reported: JudgedImages, basis: Basis | None) -> tuple[Scores, Scores]:
    """Return log-probabilities of absence and presence `[N * C, 2]`, before and after."""
    pairs = as_pairs(reported.logits64)
    before = log_probabilities(pairs)
    if basis is None:
        return before, before
    if not basis.is_of(reported):
        return before, log_probabilities(pairs / basis.calibration.temperature)
    truth = truth_of(reported)
    folds = np.repeat(reported.folds.numpy(), truth.shape[1])
    return before, cross_fitted(pairs, _flat(truth), folds)


def _present(logs: Scores, images: JudgedImages) -> Scores:
    scores: Scores = np.exp(logs[:, 1]).reshape(tuple(images.targets.shape))
    return scores


def _flat(truth: Truth) -> NDArray[np.int64]:
    return truth.astype(np.int64).reshape(-1)
