"""`graft submit`: a whole fine-tune from a job file, an archive, a folder or a data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli.client_commands import Key, Url, follow_job, upload_with_bar
from service.cli.folder_archive import zipped
from service.cli.race_command import print_standings
from service.client import DEFAULT_URL, Graft, Json
from service.job_file import SUFFIXES, JobFile, read_job_file, value_of


def submit(
    source: Annotated[
        str,
        typer.Argument(
            help="A job file (.yaml, .json), an archive or folder to upload, or a data set's id."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Default: mobilenet_v2.")] = None,
    weights: Annotated[str | None, typer.Option(help="Default: DEFAULT.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Default: head.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", help="Recipe parameter, `name=value`; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    promote: Annotated[
        bool | None, typer.Option("--promote/--no-promote", help="Default: promote.")
    ] = None,
    block_on: Annotated[
        str | None,
        typer.Option(
            metavar="[error|warning]",
            help="Fail before training if the data has such findings. Default: never.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field, `priority=5`, `parameters.epochs=3`; repeatable."),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show progress until the end.")] = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Run a job: fine-tune and serve, or race; options win over the job file."""
    job_file = _source(source)
    given = {
        "model": model,
        "backbone": backbone,
        "weights": weights,
        "recipe": recipe,
        "seed": seed,
        "promote": promote,
        "block_on": block_on,
    }
    for name, value in given.items():
        if value is not None:
            job_file = job_file.with_field(name, value, f"--{name.replace('_', '-')}")
    for pair in parameter or []:
        job_file = _with_pair(job_file, f"parameters.{pair}", f"-p {pair}")
    for pair in settings or []:
        job_file = _with_pair(job_file, pair, f"--set {pair}")
    job_file.check()
    with Graft(url, key=key) as graft:
        fields = {**job_file.fields, "dataset": _dataset_id(graft, job_file)}
        job = graft.submit(**fields)
        print(f"job {job['id']}", file=sys.stderr)
        _print_secret(job)
        if follow:
            _print_end(follow_job(graft, job["id"]))


def _print_secret(job: Json) -> None:
    secret = (job["webhook"] or {}).get("secret")
    if secret is not None:
        print(f"secret of the webhook (told only now): {secret}", file=sys.stderr)


def _print_end(job: Json) -> None:
    result = job["result"]
    if job["type"] == "race":
        print_standings(result)
        return
    if job["type"] != "fine_tune":
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    figures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(job["metrics"].items()))
    print(f"{result['model']} version {result['version']}: {figures}")
    if "reason" in result:
        print(result["reason"])


def _source(source: str) -> JobFile:
    path = Path(source)
    if path.suffix in SUFFIXES and path.is_file():
        return read_job_file(path)
    return JobFile("the job", Path(), {"dataset": source})


def _with_pair(job_file: JobFile, pair: str, place: str) -> JobFile:
    name, sign, text = pair.partition("=")
    if not sign:
        raise typer.BadParameter(f"{pair!r} is not name=value")
    return job_file.with_field(name, value_of(text), place)


def _dataset_id(graft: Graft, job_file: JobFile) -> str:
    """Return the id of the job's data set, which is uploaded first if it is a path."""
    path = job_file.data_path
    if path is None:
        return str(job_file.fields["dataset"])
    name = str(job_file.fields.get("model") or path.resolve().name.split(".")[0])
    if path.is_dir():
        with zipped(path) as archive:
            return str(upload_with_bar(graft, archive, name)["id"])
    return str(upload_with_bar(graft, path, name)["id"])
