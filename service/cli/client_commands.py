"""`graft predict | datasets | models | jobs`: thin clients with progress bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Table

from service.client import DEFAULT_URL, Graft, JobFailed, Json

Url = Annotated[str, typer.Option(envvar="GRAFT_URL", help="Where the service listens.")]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="GRAFT_API_KEY",
        help="API key; better in the variable: others on the machine see command lines.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

datasets_app = typer.Typer(help="Data sets.", no_args_is_help=True)
models_app = typer.Typer(help="Models, versions and aliases.", no_args_is_help=True)
jobs_app = typer.Typer(help="Jobs.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(predict)
    app.add_typer(datasets_app, name="datasets")
    app.add_typer(models_app, name="models")
    app.add_typer(jobs_app, name="jobs")


def predict(
    model: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name@version`.")],
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    top_k: int = 3,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Error budget between 0 and 1: what cannot be told within it is abstained."
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Predict images."""
    answers: list[Json] = []
    with Graft(url, key=key) as graft:
        for start in range(0, len(images), 32):
            some = images[start : start + 32]
            told = graft.predict(model, *some, top_k=top_k, max_error=max_error)
            answers += told["predictions"]
    if as_json:
        pairs = zip(images, answers, strict=True)
        print_json([{"image": str(image), **answer} for image, answer in pairs])
        return
    rows = []
    for image, answer in zip(images, answers, strict=True):
        rows.append([str(image), _labels_of(answer)])
    _print_table(["image", "labels"], rows)


def _labels_of(answer: Json) -> str:
    """Return the scores of a prediction in words, or why there are none."""
    if "error" in answer:
        return str(answer["error"]["detail"])
    found = "  ".join(f"{item['label']} {item['score']:.3f}" for item in answer["scores"])
    return f"abstained: {found}" if answer["abstained"] else found


@datasets_app.command("upload")
def upload(
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload labelled images (zip, tar, tar.gz, npz, HDF5) and wait until it is checked."""
    with Graft(url, key=key) as graft:
        print_json(upload_with_bar(graft, archive, name or archive.name.split(".")[0]))


@datasets_app.command("add")
def add_images(
    dataset: Annotated[str, typer.Argument(help="Id of the data set whose images are kept.")],
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload further images: a new version holds the old and the new ones."""
    with Graft(url, key=key) as graft:
        print_json(upload_with_bar(graft, archive, None, dataset))


@datasets_app.command("list")
def list_datasets(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List data sets."""
    with Graft(url, key=key) as graft:
        found = list(graft.datasets())
    columns = ["id", "name", "version", "status", "classes"]
    print_list(found, columns, as_json)


@datasets_app.command("report")
def report(dataset: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print what was found in an upload, and by the newest job; `graft doctor` reads better."""
    with Graft(url, key=key) as graft:
        print_json(graft.report(dataset))


@datasets_app.command("delete")
def delete_dataset(dataset: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete a data set."""
    with Graft(url, key=key) as graft:
        graft.delete_dataset(dataset)


@models_app.command("list")
def list_models(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List models."""
    with Graft(url, key=key) as graft:
        print_list(list(graft.models()), ["name", "versions", "aliases"], as_json)


@models_app.command("promote")
def promote(
    model: str, version: int, alias: str = "default", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Point an alias to a version: promotion and rollback."""
    with Graft(url, key=key) as graft:
        print_json(graft.set_alias(model, alias, version))


@models_app.command("download")
def download(
    model: str, version: int, destination: Path, url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Save a version as a zip file."""
    with Graft(url, key=key) as graft:
        print(graft.download_archive(model, version, destination))


@models_app.command("delete")
def delete_model(model: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete a model with all its versions."""
    with Graft(url, key=key) as graft:
        graft.delete_model(model)


@models_app.command("import")
def import_archive(
    model: str,
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Publish a saved version as the next version of a model."""
    with Graft(url, key=key) as graft:
        print_json(graft.import_archive(model, archive))


@jobs_app.command("list")
def list_jobs(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List jobs, newest first."""
    with Graft(url, key=key) as graft:
        print_list(list(graft.jobs()), ["id", "status", "phase", "attempt", "metrics"], as_json)


@jobs_app.command("show")
def show_job(job: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print a job."""
    with Graft(url, key=key) as graft:
        print_json(graft.job(job))


@jobs_app.command("delete")
def delete_job(job: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete an ended job and its log."""
    with Graft(url, key=key) as graft:
        graft.delete_job(job)


@jobs_app.command("follow")
def follow(job: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show a job's progress until its end."""
    with Graft(url, key=key) as graft:
        print_json(follow_job(graft, job)["metrics"])


@jobs_app.command("reproduce")
def reproduce(job: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Repeat an ended job to the bit and say whether the weights are the same bytes."""
    with Graft(url, key=key) as graft:
        print_json(follow_job(graft, graft.reproduce(job)["id"])["result"])


@jobs_app.command("act")
def act(
    job: str,
    action: Annotated[str, typer.Argument(help="cancel, pause, resume or retry")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Cancel, pause, resume or retry a job."""
    if action not in ("cancel", "pause", "resume", "retry"):
        raise typer.BadParameter("cancel, pause, resume or retry")
    with Graft(url, key=key) as graft:
        print_json(graft.act(job, action))


def upload_with_bar(
    graft: Graft,
    archive: Path,
    name: str | None,
    parent: str | None = None,
    *,
    labelled: bool = True,
) -> Json:
    """Upload an archive with a progress bar; return the data set once it is ready.

    Args:
        graft: The service.
        archive: What to upload.
        name: What to call a new data set; None with a parent.
        parent: The data set that gets a new version.
        labelled: Whether the images of a new one have labels.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"upload {archive.name}")

        def report_bytes(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if parent is not None:
            dataset = graft.add_images(parent, archive, report=report_bytes)
        else:
            dataset = graft.upload(
                archive, name=name or "dataset", labelled=labelled, report=report_bytes
            )
    with Console(stderr=True).status("checking the images"):
        return graft.wait_for_dataset(dataset["id"])


def follow_job(graft: Graft, job_id: str) -> Json:
    """Show a job's phases and progress until its end and return it.

    Raises:
        JobFailed: It failed or was cancelled.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("queued", total=None, left="")
        for event in graft.events(job_id):
            data = event.get("data", {})
            if event["event"] == "phase":
                progress.update(task, left="")
                task = progress.add_task(data["data"]["phase"], total=None, left="")
            elif event["event"] == "progress":
                left = _time_left(data["eta_seconds"])
                progress.update(task, completed=data["done"], total=data["total"], left=left)
    job = graft.job(job_id)
    if job["status"] != "succeeded":
        raise JobFailed(job)
    return job


def _time_left(eta_seconds: float | None) -> str:
    """Return how long the whole job will still take, in words."""
    if eta_seconds is None:
        return ""
    left = f"{eta_seconds:.0f} s" if eta_seconds < 90 else f"{eta_seconds / 60:.0f} min"
    return f"{left} left"


def print_list(items: list[Json], columns: list[str], as_json: bool) -> None:
    """Print some fields of items as a table, or all of them as JSON."""
    if as_json:
        print_json(items)
        return
    _print_table(columns, [[_cell(item[column]) for column in columns] for item in items])


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON is any
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else str(value)


def print_json(value: Any) -> None:  # noqa: ANN401 - JSON is any
    """Print a value for people and programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
