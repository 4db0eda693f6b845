"""`graft weights list | download | verify | import | export`: the vault of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from models_cache.catalogue import Catalogue, WeightsInfo
from models_cache.weights import WeightsVault, obtain
from service.settings import Settings

app = typer.Typer(help="Pretrained weights on this machine.", no_args_is_help=True)


@app.command("list")
def list_weights(
    everything: Annotated[bool, typer.Option("--all", help="Also what is not here yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List pretrained weights, and which are on disk and verified."""
    vault, catalogue = _vault()
    rows = [
        (info, vault.have(info), vault.verified(info))
        for backbone in catalogue.architectures()
        for info in backbone.weights
    ]
    shown = [row for row in rows if everything or row[1]]
    if as_json:
        keys = ("architecture", "weights", "file", "downloaded", "verified")
        values = [(i.architecture, i.name, i.file, here, how) for i, here, how in shown]
        print(json.dumps([dict(zip(keys, value, strict=True)) for value in values], indent=2))
        return
    table = Table("architecture", "weights", "file", "on disk", "verified", "licence")
    for info, here, how in shown:
        name, on_disk = info.name, "yes" if here else "no"
        table.add_row(info.architecture, name, info.file, on_disk, how or "never", info.license)
    Console().print(table)
    if not shown:
        print("none is on disk; --all lists what there is", file=sys.stderr)


@app.command()
def download(
    architecture: str,
    weights: Annotated[str, typer.Argument(help="Name of the weights.")] = "DEFAULT",
) -> None:
    """Fetch weights into the vault and verify them; goes on where a broken download stopped."""
    vault, catalogue = _vault()
    candidates = catalogue.candidates(architecture, weights, have=vault.have)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(architecture)

        def report(done_bytes: int, total_bytes: int | None) -> None:
            progress.update(task, completed=done_bytes, total=total_bytes)

        info, path = obtain(vault, candidates, report, progress.console.print)
    print(f"{info.architecture} {info.name}: {path}")


@app.command()
def verify() -> None:
    """Hash every file on disk again; status 1 if one is not what it should be."""
    vault, catalogue = _vault()
    folder = Settings().data_dir / "weights"
    broken = 0
    for info in _known(catalogue):
        if not (folder / info.file).is_file():
            continue
        fine = vault.path_if_verified(info) is not None
        broken += not fine
        print(f"{'ok     ' if fine else 'BROKEN '} {info.architecture} {info.name} {info.file}")
    if broken:
        print(f"{broken} broken; delete them and run `graft weights download`", file=sys.stderr)
        raise typer.Exit(1)


def _known(catalogue: Catalogue) -> list[WeightsInfo]:
    found = [info for backbone in catalogue.architectures() for info in backbone.weights]
    return list({info.file: info for info in found}.values())


def _vault() -> tuple[WeightsVault, Catalogue]:
    settings = Settings()
    catalogue = Catalogue.load(extra_files=[Path(path) for path in settings.weights_catalog])
    vault = WeightsVault(
        settings.data_dir / "weights", settings.weights_sources, offline=settings.offline
    )
    return vault, catalogue
