"""`graft batch`: what a model says of a folder, an archive or a data set, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.client_commands import Key, Url, follow_job, upload_with_bar
from service.cli.folder_archive import zipped
from service.client import DEFAULT_URL, Graft

_JSON_LINES = (".jsonl", ".ndjson")


def batch(
    model: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name@version`.")],
    images: Annotated[
        str, typer.Argument(help="A folder or archive of images, or the id of a data set.")
    ],
    output: Annotated[
        Path, typer.Option(help="Where the answers go: `.csv`, or `.jsonl` with all scores.")
    ] = Path("predictions.csv"),
    top_k: Annotated[int | None, typer.Option(min=1, help="Default: all labels.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Abstain rather than be wrong more often than this.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Predict many images in the background and save the answers."""
    asked: dict[str, Any] = {"top_k": top_k, "max_error": max_error}
    parameters = {name: value for name, value in asked.items() if value is not None}
    with Graft(url, key=key) as graft:
        dataset = _dataset(graft, images)
        job = graft.submit(dataset, type="batch_predict", model=model, parameters=parameters)
        result = follow_job(graft, job["id"])["result"]
        kind = "jsonl" if output.suffix in _JSON_LINES else "csv"
        graft.save_file(job["id"], f"predictions.{kind}", output)
    told = f"{result['images']} images, {result['failed']} failed, {result['abstained']} abstained"
    print(f"{told}: {output}")


def _dataset(graft: Graft, images: str) -> str:
    """Return the id of the data set to predict; files are uploaded as one without labels."""
    path = Path(images)
    if not path.exists():
        if images.startswith("ds_"):
            return images
        raise typer.BadParameter(f"{images} is neither a file or folder nor the id of a data set")
    name = path.resolve().name.split(".")[0] or "images"
    if not path.is_dir():
        return str(upload_with_bar(graft, path, name, labelled=False)["id"])
    with zipped(path) as archive:
        return str(upload_with_bar(graft, archive, name, labelled=False)["id"])
