"""`graft doctor`: what is wrong with this machine, or with a data set; a status for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.cli.client_commands import AsJson, Key, Url, print_json, upload_with_bar
from service.cli.configuration import load_settings
from service.cli.machine_doctor import examine_machine
from service.client import DEFAULT_URL, DatasetRejected, Graft, Json

_WORST_FIRST = ("error", "warning", "info")
_STYLES = {"error": "red", "warning": "yellow", "info": "blue"}
_MAX_FILES = 20  # unreadable ones, named


def doctor(
    data: Annotated[
        str | None,
        typer.Argument(
            help="An archive to upload, or the id of a data set; none: this machine is looked at."
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Say what is wrong with this machine, or with a data set; status 1 if something is."""
    if data is None:
        if examine_machine(load_settings(), as_json=as_json):
            raise typer.Exit(1)
        return
    with Graft(url, key=key) as graft:
        try:
            dataset = _dataset(graft, data)
        except DatasetRejected as rejected:
            dataset = rejected.dataset
        report = graft.report(dataset["id"])
    if as_json:
        print_json(report)
    else:
        _tell(dataset, report, Console())
    if _is_bad(dataset, report):
        raise typer.Exit(1)


def _dataset(graft: Graft, data: str) -> Json:
    path = Path(data)
    if path.is_file():
        return upload_with_bar(graft, path, path.name.split(".")[0])
    return graft.wait_for_dataset(data)


def _tell(dataset: Json, report: Json, console: Console) -> None:
    """Print a report."""
    splits = ", ".join(f"{split['images']} {name}" for name, split in dataset["splits"].items())
    console.print(f"data set {dataset['id']} ({dataset['status']}): {splits or 'no'} images")
    for file in report["errors"][:_MAX_FILES]:
        console.print(escape(f"{file['path']}: {file['message']}"))
    findings = sorted(report["findings"], key=lambda found: _WORST_FIRST.index(found["severity"]))
    table = Table("severity", "finding", "what was found")
    for found in findings:
        style = _STYLES[found["severity"]]
        table.add_row(f"[{style}]{found['severity']}[/]", found["code"], escape(found["message"]))
    if findings:
        console.print(table)
    elif dataset["status"] == "ready":
        console.print("nothing was found")
    if dataset["status"] == "ready" and report["examined"] is None:
        console.print(
            "Labels and outliers are looked at by the first job: "
            f"graft submit {dataset['id']} --no-promote"
        )


def _is_bad(dataset: Json, report: Json) -> bool:
    severities = {found["severity"] for found in report["findings"]}
    return dataset["status"] == "rejected" or "error" in severities
