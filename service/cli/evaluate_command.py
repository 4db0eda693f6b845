"""`graft evaluate`: what a version is worth on a labelled data set, as a table."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.cli.client_commands import AsJson, Key, Url, follow_job, upload_with_bar
from service.client import DEFAULT_URL, Graft, Json

_FILE = "evaluation.json"
_FIGURES = (
    "accuracy_top1", "accuracy_top5", "mean_average_precision", "exact_match", "micro_f1",
    "macro_f1", "loss", "ece",
)  # fmt: skip
_MOST_CLASSES = 50  # in the table; all are in the file


def evaluate(
    model: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name@version`.")],
    data: Annotated[str, typer.Argument(help="An archive to upload, or the id of a data set.")],
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test; default: the first of test, val and all with some."),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Judge a version by a labelled data set; nothing of it is chosen on these images."""
    with Graft(url, key=key) as graft:
        dataset_id = data
        if Path(data).is_file():
            dataset_id = upload_with_bar(graft, Path(data), Path(data).name.split(".")[0])["id"]
        job = graft.evaluate(model, dataset_id, split=split)
        print(f"job {job['id']}", file=sys.stderr)
        job = follow_job(graft, job["id"])
        with tempfile.TemporaryDirectory() as folder:
            path = graft.save_file(job["id"], _FILE, Path(folder) / _FILE)
            evaluation = json.loads(path.read_bytes())
    if as_json:
        print(json.dumps(evaluation, indent=2, ensure_ascii=False))
        return
    print_evaluation(job, evaluation)


def print_evaluation(job: Json, evaluation: Json) -> None:
    """Print the figures over all images, those of each class, and what was not judged."""
    console = Console()
    spec, split = job["spec"], evaluation["split"]
    name = f"{spec['model']}@{spec['version']}"
    overall = Table("figure", "value", title=f"{name}, {evaluation['images']} images ({split})")
    for figure in _FIGURES:
        if f"{split}/{figure}" in job["metrics"]:
            overall.add_row(figure.replace("_", " "), _figure(figure, job["metrics"], evaluation))
    console.print(overall)
    table = Table("class", "precision", "recall", "F1", "images")
    for row in evaluation["per_class"][:_MOST_CLASSES]:
        shown = [f"{row[figure]:.3f}" for figure in ("precision", "recall", "f1")]
        table.add_row(escape(row["class"]), *shown, str(row["support"]))
    console.print(table)
    for line in _remarks(job["id"], evaluation):
        console.print(escape(line))


def _figure(figure: str, metrics: dict[str, Any], evaluation: Json) -> str:
    split = evaluation["split"]
    value = f"{metrics[f'{split}/{figure}']:.4f}"
    if figure != "accuracy_top1":
        return value
    low, high = evaluation["accuracy_interval_95"]
    return f"{value} ({low:.4f} to {high:.4f})"


def _remarks(job_id: str, evaluation: Json) -> list[str]:
    """Return what should be known beside the figures, one sentence each."""
    lines = [
        f"class {row['class']} is unknown to the model: {row['images']} images"
        for row in evaluation["unknown_classes"][:_MOST_CLASSES]
    ]
    if evaluation["set_aside_images"]:
        lines.append(f"{evaluation['set_aside_images']} images are in none of the figures above")
    if evaluation["absent_classes"]:
        shown = ", ".join(evaluation["absent_classes"][:_MOST_CLASSES])
        lines.append(f"the data set lacks, so that they count as errors when answered: {shown}")
    own = evaluation["images_of_its_own_data"]
    if own is not None and own["train"]:
        lines.append(f"the model learned from {own['train']} of these images")
    left = len(evaluation["per_class"]) - _MOST_CLASSES
    if left > 0:
        lines.append(f"{left} more classes: GET /v1/jobs/{job_id}/files/{_FILE}")
    return lines
