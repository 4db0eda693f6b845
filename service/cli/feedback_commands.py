"""`graft feedback`: what images really show, and a model that learns it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.client_commands import AsJson, Key, Url, follow_job, print_json, print_list
from service.client import DEFAULT_URL, Graft

app = typer.Typer(help="Corrected labels.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="`name`, `name@alias` or `name@version`.")]


@app.command("give")
def give(
    model: Model,
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    labels: Annotated[list[str], typer.Argument(help="What it shows.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Say what an image really shows; nothing changes until `apply`."""
    with Graft(url, key=key) as graft:
        print_json(graft.feedback(model, image, *labels))


@app.command("list")
def list_feedback(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List what was said about a model's images."""
    with Graft(url, key=key) as graft:
        found = list(graft.feedback_about(model))
    print_list(found, ["id", "version", "labels", "predicted", "dataset"], as_json)


@app.command("apply")
def apply(
    model: Model,
    retrain: Annotated[bool, typer.Option(help="Learn from the new data.")] = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make a new version of the data set, and of the model, of all that was said."""
    with Graft(url, key=key) as graft:
        made = graft.apply_feedback(model, retrain=retrain)
        dataset = graft.wait_for_dataset(made["dataset"])
        print(f"data set {dataset['id']}: {made['images']} corrections")
        if made["job"] is not None:
            job = follow_job(graft, made["job"])
            print_json({"result": job["result"], "metrics": job["metrics"]})
