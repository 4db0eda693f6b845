"""The plots of a model card: an evaluation's figures as drawings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from models_cache.calibration import Calibration
from models_cache.svg import BLUE, FAINT, INK, ORANGE, PAPER, Drawing

_SIDE_PX = 260  # of a square in which fractions are plotted
_LEFT_PX, _TOP_PX, _GAP_PX = 52, 44, 60
_MOST_CLASSES = 25  # that a confusion matrix shows; others would be specks
_LONGEST_NAME = 18
Point = tuple[float, float]


def plots(evaluation: dict[str, Any], calibration: Calibration | None) -> dict[str, bytes]:
    """Return the plots that an evaluation has figures for, by file name.

    Args:
        evaluation: As a task's `evaluation` returns it.
        calibration: What the model answers with, if anything.
    """
    found = {}
    if "confusion" in evaluation:
        found["confusion.svg"] = _confusion(evaluation)
    found["reliability.svg"] = _reliability(evaluation)
    if calibration is not None and calibration.levels:
        found["risk-coverage.svg"] = _risk_coverage(calibration)
    if evaluation["roc"]:
        found["roc.svg"] = _roc(evaluation)
        found["precision-recall.svg"] = _precision_recall(evaluation)
    return {name: drawing.as_bytes() for name, drawing in found.items()}


def _confusion(evaluation: dict[str, Any]) -> Drawing:
    matrix, names = evaluation["confusion"], evaluation["classes"]
    shown = _most_confused(matrix)
    cell = 56 if len(shown) <= 6 else 26
    margin = 12 + 7 * max(len(_short(names[i])) for i in shown)
    side, top_px = cell * len(shown), _TOP_PX + 16
    width, height = max(margin + side + 24, 420), top_px + side + margin
    title = f"Confusion on {evaluation['split']}, {evaluation['images']} images"
    drawing = Drawing(width, height, title)
    drawing.text(16, 22, title)
    words = "Rows: true class. Columns: predicted."
    if len(shown) < len(names):
        words += f" {len(shown)} of {len(names)} classes, those with the most errors."
    drawing.text(16, 40, words)
    for y, true in enumerate(shown):
        top, support = top_px + y * cell, sum(matrix[true]) or 1
        drawing.text(margin - 6, top + cell / 2 + 4, _short(names[true]), anchor="end")
        for x, predicted in enumerate(shown):
            count, left = matrix[true][predicted], margin + x * cell
            share = count / support
            drawing.rect(left, top, cell - 1, cell - 1, FAINT, opacity=0.25)
            drawing.rect(left, top, cell - 1, cell - 1, BLUE if x == y else ORANGE, opacity=share)
            if count:
                ink = PAPER if share > 0.5 else INK
                middle = (left + cell / 2, top + cell / 2 + 4)
                drawing.text(*middle, str(count), anchor="middle", colour=ink)
    for x, predicted in enumerate(shown):
        place = (margin + x * cell + cell / 2 + 4, top_px + side + 8)
        drawing.text_upwards(*place, _short(names[predicted]), anchor="end")
    return drawing


def _most_confused(matrix: Sequence[Sequence[int]]) -> list[int]:
    """Return the classes that are shown, in their order."""
    count = len(matrix)
    errors = [
        sum(matrix[i]) + sum(row[i] for row in matrix) - 2 * matrix[i][i] for i in range(count)
    ]
    return sorted(sorted(range(count), key=lambda i: (-errors[i], i))[:_MOST_CLASSES])


def _reliability(evaluation: dict[str, Any]) -> Drawing:
    figures = evaluation["calibration"]
    # Labels are judged one by one: their score against how many of the images have them
    names = ("confidence", "accuracy") if "confusion" in evaluation else ("score", "label is there")
    width = 2 * (_LEFT_PX + _SIDE_PX) + _GAP_PX
    drawing = Drawing(width, _TOP_PX + _SIDE_PX + 56, "Reliability before and after calibration")
    for number, (name, colour) in enumerate((("before", ORANGE), ("after", BLUE))):
        left = _LEFT_PX + number * (_LEFT_PX + _SIDE_PX)
        part = figures[name]
        words = f"{name} calibration: ECE {part['ece']:.3f}, NLL {part['nll']:.3f}"
        at = _axes(drawing, left, words, names)
        most = max((row["images"] for row in part["bins"]), default=1) or 1
        for row in part["bins"]:
            if row["images"]:
                x, y = at(row["from"], row["accuracy"])
                right, bottom = at(row["to"], 0)
                # Paler where few images speak
                opacity = 0.25 + 0.75 * row["images"] / most
                drawing.rect(x, y, right - x - 1, bottom - y, colour, opacity=opacity)
                drawing.dot(*at(row["confidence"], row["accuracy"]), INK)
        drawing.line(at(0, 0), at(1, 1), dashed=True)
    return drawing


def _risk_coverage(calibration: Calibration) -> Drawing:
    drawing = Drawing(_LEFT_PX + _SIDE_PX + 150, _TOP_PX + _SIDE_PX + 56, "Risk and coverage")
    top = math.ceil(10 * calibration.levels[-1].error_bound) / 10
    words = f"Errors among answered images ({calibration.fitted_on})"
    at = _axes(drawing, _LEFT_PX, words, ("coverage", "error"), top)
    measured = [(level.coverage, level.error) for level in calibration.levels]
    bounds = [
        (level.coverage, level.error_bound)
        for level in calibration.levels
        if level.error_bound <= top
    ]
    for points, colour, name, row in (
        (measured, BLUE, "measured", 0),
        (bounds, ORANGE, f"{100 * calibration.certainty:.0f} % bound", 1),
    ):
        drawing.curve([at(*point) for point in points], colour)
        for point in points:
            drawing.dot(*at(*point), colour)
        drawing.text(_LEFT_PX + _SIDE_PX + 16, _TOP_PX + 20 + 20 * row, name, colour=colour)
    return drawing


def _roc(evaluation: dict[str, Any]) -> Drawing:
    roc = evaluation["roc"]
    words = f"ROC of {_positive(evaluation)}: AUC {roc['auc']:.3f}"
    drawing, at = _single(words, ("false positive rate", "true positive rate"))
    drawing.line(at(0, 0), at(1, 1), dashed=True)
    drawing.curve([at(x, y) for x, y in roc["points"]], BLUE)
    return drawing


def _precision_recall(evaluation: dict[str, Any]) -> Drawing:
    figures = evaluation["precision_recall"]
    average = figures["average_precision"]
    words = f"{_positive(evaluation)}: average precision {average:.3f}"
    drawing, at = _single(words, ("recall", "precision"))
    drawing.curve([at(x, y) for x, y in figures["points"]], BLUE)
    return drawing


def _positive(evaluation: dict[str, Any]) -> str:
    """Return what the curves are of: the second of two classes, or all labels taken together."""
    return _short(evaluation["positive_class"]) if "confusion" in evaluation else "all labels"


def _single(words: str, names: tuple[str, str]) -> tuple[Drawing, Callable[[float, float], Point]]:
    drawing = Drawing(_LEFT_PX + _SIDE_PX + 32, _TOP_PX + _SIDE_PX + 56, words)
    return drawing, _axes(drawing, _LEFT_PX, words, names)


def _axes(
    drawing: Drawing, left: float, words: str, names: tuple[str, str], top: float = 1.0
) -> Callable[[float, float], Point]:
    """Draw a titled square with two axes; return what turns figures into places.

    The horizontal axis is 0 to 1, the vertical one 0 to `top`.
    """

    def at(x: float, y: float) -> Point:
        return left + x * _SIDE_PX, _TOP_PX + (1 - y / top) * _SIDE_PX

    drawing.text(left, 24, words)
    for step in range(6):
        x, y = step / 5, top * step / 5
        drawing.line(at(0, y), at(1, y), FAINT)
        drawing.text(at(0, y)[0] - 6, at(0, y)[1] + 4, f"{y:.2g}", anchor="end")
        drawing.text(at(x, 0)[0], at(x, 0)[1] + 18, f"{x:.2g}", anchor="middle")
    drawing.text(at(0.5, 0)[0], at(0, 0)[1] + 40, names[0], anchor="middle")
    drawing.text_upwards(left - 38, at(0, top / 2)[1], names[1])
    return at


def _short(name: str) -> str:
    """Return a name that fits; what tells similar names apart is often at their end."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
