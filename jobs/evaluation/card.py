"""The model card: `README.md` of an artifact, what a person should know before using the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.card_confidence import confidence
from jobs.evaluation.card_labels import label_figures, label_limits, label_summary
from jobs.evaluation.markdown import plain, table
from models_cache.artifacts import MULTILABEL, ArtifactFacts
from models_cache.plain_torch import loading_code

_MOST_ROWS = 50  # of a table; the rest is in `evaluation.json`
_MOST_ERRORS = 10
_PLOT_WORDS = {
    "confusion.svg": "Confusion matrix",
    "reliability.svg": "Reliability before and after calibration",
    "risk-coverage.svg": "Errors among the answered images by coverage",
    "roc.svg": "ROC curve",
    "precision-recall.svg": "Precision and recall",
}


_CLASS_ERRORS = "An error is a wrong label."
_LABEL_ERRORS = (
    "An answer is the whole set of labels, an error a set in which one is missing or too many; "
    "the confidence in a set is the product of what speaks for each of its labels and against "
    "all others."
)


@dataclass(frozen=True)
class DataSummary:
    """What a model was made from.

    Args:
        digest: Of the data set.
        images: Number of images by split and class name.
    """

    digest: str
    images: Mapping[str, Mapping[str, int]]


def model_card(
    facts: ArtifactFacts, evaluation: Mapping[str, Any], data: DataSummary, plots: Sequence[str]
) -> str:
    """Return the card as Markdown. It says nothing of the time: the same model, the same card.

    Args:
        facts: The artifact.
        evaluation: As the task's `evaluation` returns it.
        data: What it was made from.
        plots: Names of the plots beside it.

    Source:
        Headings after Mitchell et al. 2019, arXiv:1810.03993.
    """
    if facts.task == MULTILABEL:
        sections = [
            label_summary(facts, evaluation),
            _data(data, facts.classes, "all labels"),
            label_figures(evaluation),
            _pictures(plots),
            confidence(evaluation, "sigmoid", _LABEL_ERRORS),
            label_limits(evaluation),
        ]
    else:
        sections = [
            _summary(facts, evaluation),
            _data(data, facts.classes, "all"),
            _figures(evaluation),
            _pictures(plots),
            confidence(evaluation, "softmax", _CLASS_ERRORS),
            _limits(evaluation),
        ]
    sections += [
        _lineage(facts),
        _licence(facts),
        _loading(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _pictures(plots: Sequence[str]) -> str:
    return "\n\n".join(f"![{_PLOT_WORDS[name]}]({name})" for name in plots)


def _summary(facts: ArtifactFacts, evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["accuracy_interval_95"]
    classes = ", ".join(plain(name) for name in facts.classes[:_MOST_ROWS])
    recipe = facts.lineage.get("recipe", {}).get("name", "unknown")
    split = evaluation["split"]
    return f"""# Image classifier: {len(facts.classes)} classes on `{facts.architecture}`

Accuracy {evaluation["accuracy_top1"]:.3f} (95 % interval {low:.3f} to {high:.3f}) on \
{evaluation["images"]} images of split `{split}`{_SPLITS.get(split, "")}.

- Task: one label per image, out of: {classes}{", ..." if len(facts.classes) > _MOST_ROWS else ""}
- Recipe: `{recipe}`; stored here: {_KINDS[facts.kind]}
- Input: RGB, shorter side {facts.preprocessing.resize_px} px, centre \
{facts.preprocessing.crop_px} x {facts.preprocessing.crop_px} px"""


_KINDS = {
    "head": "the linear head; the backbone is a file of pretrained weights",
    "whole": "the whole network",
}
_SPLITS = {
    "val": "; recipes with epochs choose the best one on it, so it flatters them a little",
    "holdout": ", held out from the training images; the best epoch was chosen on it",
    "train-folds": ": training images, each judged by a model that did not learn from it",
    "train-seen": ": training images that the model learned from; new images will fare worse",
}


def _data(data: DataSummary, classes: Sequence[str], together: str) -> str:
    rows = [
        [name, *(str(counts.get(name, 0)) for counts in data.images.values())]
        for name in classes[:_MOST_ROWS]
    ]
    totals = [together, *(str(sum(counts.values())) for counts in data.images.values())]
    counted = table(["class", *data.images], [*rows, totals])
    return f"## Data\n\nData set `{data.digest}`; images by class and split:\n\n{counted}"


def _figures(evaluation: Mapping[str, Any]) -> str:
    figures = [
        ["accuracy", evaluation["accuracy_top1"]],
        ["top-5 accuracy", evaluation["accuracy_top5"]],
        ["macro-F1", evaluation["macro_f1"]],
        ["negative log-likelihood, calibrated", evaluation["calibration"]["after"]["nll"]],
        ["expected calibration error", evaluation["calibration"]["after"]["ece"]],
        ["area under ROC", (evaluation["roc"] or {}).get("auc")],
        [
            "average precision",
            (evaluation["precision_recall"] or {}).get("average_precision"),
        ],
    ]
    overall = table(["figure", "value"], [[n, f"{v:.4f}"] for n, v in figures if v is not None])
    per_class = table(
        ["class", "precision", "recall", "F1", "images"],
        [
            [
                row["class"], f"{row['precision']:.3f}", f"{row['recall']:.3f}",
                f"{row['f1']:.3f}", str(row["support"]),
            ]
            for row in evaluation["per_class"][:_MOST_ROWS]
        ],
    )  # fmt: skip
    errors = table(
        ["image", "is", "predicted", "score"],
        [
            [f"`{row['image']}`", row["label"], row["predicted"], f"{row['score']:.3f}"]
            for row in evaluation["most_confident_errors"][:_MOST_ERRORS]
        ],
    )
    return (
        f"## Figures on `{evaluation['split']}`\n\n{overall}\n\n{per_class}\n\n"
        f"Most confident errors:\n\n{errors}\n\nAll figures: `evaluation.json`."
    )


def _limits(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["accuracy_interval_95"]
    weak = [row["class"] for row in evaluation["per_class"] if 0 < row["support"] < 10]
    lines = [
        "It knows only the classes above: every image gets one of them. Watch "
        "`out_of_distribution` and state an error budget (`max_error`).",
        f"The interval of the accuracy is {high - low:.3f} wide: differences within mean little.",
        "Figures hold for images taken like those of the data set, not for other cameras, places "
        "or times.",
    ]
    if weak:
        names = ", ".join(plain(name) for name in weak[:_MOST_ROWS])
        lines.append(f"Fewer than 10 images judge each of: {names}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _lineage(facts: ArtifactFacts) -> str:
    lineage = {key: value for key, value in facts.lineage.items() if key != "recipe"}
    weights = facts.weights or {}
    rows = [[key, f"`{plain(str(value))}`"] for key, value in sorted(lineage.items())]
    rows += [[key, f"`{plain(str(value))}`"] for key, value in sorted(facts.numerics.items())]
    if weights:
        rows.append(["pretrained weights", f"`{weights['name']}`, sha256 `{weights['sha256']}`"])
    else:
        rows.append(["pretrained weights", "none: trained from random ones"])
    return f"## Lineage\n\n{table(['what', 'value'], rows)}"


def _licence(facts: ArtifactFacts) -> str:
    if facts.weights is None:
        return "## Licence\n\nNo pretrained weights went into this model."
    licence = facts.weights.get("license") or "not stated by their publisher"
    source = facts.weights.get("source") or "unknown"
    return (
        f"## Licence\n\nLicence of the pretrained weights: {plain(str(licence))} (source: "
        f"{plain(str(source))}). The model is derived from them; the photographs have terms of "
        "their own."
    )


def _loading(facts: ArtifactFacts) -> str:
    code = loading_code(facts)
    if code is None:
        return "## Loading it\n\nImport the archive into Graft; this network needs its builder."
    return f"## Loading it without Graft\n\n```python\n{code}```"
