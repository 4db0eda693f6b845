"""`graft race`: which backbone suits a data set, as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.client_commands import AsJson, Key, Url, follow_job, upload_with_bar
from service.client import DEFAULT_URL, Graft, Json

_ACCURACY = ("accuracy_top1", "accuracy_interval_95", "accuracy")
_PRECISION = (
    "mean_average_precision", "mean_average_precision_interval_95", "mean average precision",
)  # fmt: skip


def race(
    data: Annotated[str, typer.Argument(help="An archive to upload, or the id of a data set.")],
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="`architecture[:WEIGHTS]`; repeatable. Default: all that are on disk."),
    ] = None,
    folds: int = 5,
    rank_by: Annotated[
        str, typer.Option(help="auto, loss, accuracy_top1 or mean_average_precision")
    ] = "auto",
    learning_curve: Annotated[str, typer.Option(help="best, all or none")] = "best",
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Compare frozen backbones on a data set by cross-validation; publishes nothing."""
    with Graft(url, key=key) as graft:
        dataset_id = data
        if Path(data).is_file():
            name = Path(data).name.split(".")[0]
            dataset_id = upload_with_bar(graft, Path(data), name)["id"]
        parameters: Json = {
            "folds": folds,
            "rank_by": rank_by,
            "learning_curve": learning_curve,
            "backbones": backbone or "downloaded",
        }
        job = graft.submit(dataset_id, type="race", parameters=parameters)
        print(f"job {job['id']}", file=sys.stderr)
        result = follow_job(graft, job["id"])["result"]
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print_standings(result)


def print_standings(result: Json) -> None:
    """Print the result of a race as a table, with what to take and why."""
    console = Console()
    several = "accuracy_top1" not in result["ranking"][0]
    name, interval, title = _PRECISION if several else _ACCURACY
    macro = [] if several else ["macro F1"]
    columns = ["", "backbone", "loss", title, *macro, "GFLOPs", "pass, s", "as the best"]
    table = Table(*columns, title=f"{result['folds']}-fold, {result['images']} training images")
    for row in result["ranking"]:
        table.add_row(
            str(row["rank"]),
            row["backbone"],
            _with_interval(row, "loss", "loss_interval_95"),
            _with_interval(row, name, interval),
            *([] if several else [f"{row['macro_f1']:.3f}"]),
            "" if row["gflops"] is None else f"{row['gflops']:.2f}",
            "cached" if row["feature_seconds"] is None else f"{row['feature_seconds']:.1f}",
            "yes" if row["indistinguishable_from_best"] else "no",
        )
    console.print(table)
    for curve in result["learning_curves"]:
        points = [f"{p['images']}: {p[name]:.3f}" for p in curve["points"]]
        console.print(f"{curve['backbone']}, {title} by images learned from: {', '.join(points)}")
    for failure in result["failures"]:
        console.print(f"{failure['backbone']} is out: {failure['error']['message']}")
    advice = result["recommendation"]
    console.print(f"take {advice['backbone']}: {advice['reason']}")
    if advice["more_images"]:
        console.print(advice["more_images"])


def _with_interval(row: Json, name: str, interval: str) -> str:
    low, high = row[interval]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"
