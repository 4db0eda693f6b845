"""What a model card says of scores, error budgets and unknown images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.markdown import table
from models_cache.novelty import FALSE_ALARMS


def confidence(evaluation: Mapping[str, Any], function: str, error: str) -> str:
    """Return how scores came about, and what error budgets cost.

    Args:
        evaluation: As a task's `evaluation` returns it.
        function: What turns logits into scores.
        error: What counts as one, as a sentence.
    """
    calibration, budgets = evaluation["calibration"], evaluation["abstention"]
    if budgets is None:
        return "## Confidence\n\nNo image was held out: scores are not calibrated."
    rows = []
    for row in budgets:
        if row["threshold"] is None:
            rows.append([f"{row['max_error']:.0%}", "cannot be promised", "", "", ""])
            continue
        measured = row["measured"]
        found = f"{measured['errors']} of {measured['answered']}" if measured else "not measured"
        rows.append(
            [
                f"{row['max_error']:.0%}", f"{row['threshold']:.4f}", f"{row['coverage']:.0%}",
                f"{row['error_bound']:.1%}", found,
            ]
        )  # fmt: skip
    head = ["error budget", "answer above", "coverage", "error at most", "errors measured"]
    crossed = " (after: cross-fitted)" if calibration["cross_fitted"] else ""
    alarms = evaluation["out_of_distribution"]
    return f"""## Confidence

Scores are {function}(logits / {calibration["temperature"]:.4f}); the temperature is fitted on \
{calibration["images"]} images (`{calibration["fitted_on"]}`). Expected calibration error \
{calibration["before"]["ece"]:.4f} before, {calibration["after"]["ece"]:.4f} after{crossed}.

{table(head, rows)}

{error} The bounds hold together with 95 % certainty, for images like those that they were \
taken from. {_alarms(alarms)}"""


def _alarms(alarms: Mapping[str, Any] | None) -> str:
    if alarms is None:
        return "There were too few images to tell unknown kinds of images from known ones."
    measured = alarms["measured"]
    found = "" if measured is None else f" ({measured:.1%} of the images reported here)"
    return (
        "Images unlike the known ones are called out of distribution; at most "
        f"{FALSE_ALARMS:.0%} of images like the known ones are{found}."
    )
