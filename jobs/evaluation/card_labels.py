"""What a model card says of a model whose images have any number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.markdown import plain, table
from models_cache.artifacts import ArtifactFacts

_MOST_ROWS = 50  # of a table; the rest is in `evaluation.json`


def label_summary(facts: ArtifactFacts, evaluation: Mapping[str, Any]) -> str:
    """Return title, quality, and what goes in and comes out."""
    classes = ", ".join(plain(name) for name in facts.classes[:_MOST_ROWS])
    recipe = facts.lineage.get("recipe", {}).get("name", "unknown")
    return f"""# Image labeller: {len(facts.classes)} labels on `{facts.architecture}`

Mean average precision {evaluation["mean_average_precision"]:.3f} on {evaluation["images"]} images \
of split `{evaluation["split"]}`.

- Task: any number of labels per image, each judged by itself, out of: {classes}
- Recipe: `{recipe}`; kind: `{facts.kind}`
- Input: RGB, shorter side {facts.preprocessing.resize_px} px, centre \
{facts.preprocessing.crop_px} x {facts.preprocessing.crop_px} px"""


def label_figures(evaluation: Mapping[str, Any]) -> str:
    """Return the figures over all labels, and of each."""
    names = ("mean_average_precision", "micro_f1", "macro_f1", "exact_match", "loss")
    overall = [[name.replace("_", " "), f"{evaluation[name]:.4f}"] for name in names]
    overall.append(
        ["expected calibration error", f"{evaluation['calibration']['after']['ece']:.4f}"]
    )
    rows = []
    for row in evaluation["per_class"][:_MOST_ROWS]:
        ranked = [row[name] for name in ("average_precision", "roc_auc")]
        found = ["not measured" if figure is None else f"{figure:.3f}" for figure in ranked]
        shown = [f"{row[name]:.3f}" for name in ("threshold", "precision", "recall", "f1")]
        errors = [f"{row['calibration'][when]['ece']:.3f}" for when in ("before", "after")]
        rows.append([row["class"], *found, *shown, *errors, str(row["support"])])
    head = [
        "label", "average precision", "area under ROC", "threshold", "precision", "recall", "F1",
        "ECE before", "ECE after", "images",
    ]  # fmt: skip
    return (
        f"## Figures on `{evaluation['split']}`\n\n{table(['figure', 'value'], overall)}\n\n"
        f"{table(head, rows)}\n\nThresholds were chosen on `{evaluation['thresholds_from']}`, for "
        "the best F1 of each label. All figures: `evaluation.json`."
    )


def label_limits(evaluation: Mapping[str, Any]) -> str:
    """Return what the figures do not say."""
    lines = [
        "Each label is judged by itself: scores do not add up to 1. An image without any of the "
        "labels has none; watch `out_of_distribution` and state an error budget (`max_error`).",
        "One temperature calibrates all labels together; the expected calibration error of a "
        "single one is the larger for the few images that it is measured on.",
        "Figures hold for images taken like those of the data set, not for other cameras, places "
        "or times.",
    ]
    weak = [row["class"] for row in evaluation["per_class"] if row["support"] < 10]
    if weak:
        names = ", ".join(plain(name) for name in weak[:_MOST_ROWS])
        lines.append(f"Fewer than 10 images judge each of: {names}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
