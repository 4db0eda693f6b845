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

from models_cache import weights_bundle
from models_cache.catalogue import Catalogue
from models_cache.weights import WeightsVault, obtain
from service.cli.configuration import load_settings

app = typer.Typer(help="Pretrained weights on this machine.", no_args_is_help=True)


@app.command("list")
def list_weights(
    everything: Annotated[bool, typer.Option("--all", help="Also what is not here yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List pretrained weights, and which are on disk and verified."""
    vault, catalogue = _vault()
    found = weights_bundle.list_weights(vault, catalogue)
    shown = [row for row in found if everything or row.downloaded]
    if as_json:
        print(json.dumps([_as_json(row) for row in shown], indent=2))
        return
    table = Table("architecture", "weights", "file", "on disk", "verified", "licence")
    for row in shown:
        info, on_disk = row.info, "yes" if row.downloaded else "no"
        how = row.verified or "never"
        table.add_row(info.architecture, info.name, info.file, on_disk, how, info.license)
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
        task = progress.add_task(architecture, total=None)

        def report(done_bytes: int, total_bytes: int | None) -> None:
            progress.update(task, completed=done_bytes, total=total_bytes)

        info, path = obtain(vault, candidates, report, progress.console.print)
    print(f"{info.architecture} {info.name}: {path}")


@app.command()
def verify() -> None:
    """Hash every file on disk again; status 1 if one is not what it should be."""
    results = weights_bundle.verify_weights(*_vault())
    for info, fine in results:
        print(f"{'ok     ' if fine else 'BROKEN '} {info.architecture} {info.name} {info.file}")
    broken = sum(not fine for _, fine in results)
    if broken:
        print(f"{broken} broken; delete them and run `graft weights download`", file=sys.stderr)
        raise typer.Exit(1)


@app.command("export")
def export_bundle(
    bundle: Annotated[Path, typer.Argument(help="The zip to write.")],
    architecture: Annotated[list[str], typer.Argument(help="Whose weights on disk to carry.")],
) -> None:
    """Write weights of this machine into one zip, for a machine without a connection."""
    vault, catalogue = _vault()
    wanted = [
        info
        for name in architecture
        for info in catalogue.backbone(name).weights
        if vault.have(info)
    ]
    if not wanted:
        raise typer.BadParameter("no weights of these are on disk; download them first")
    weights_bundle.export_bundle(vault, wanted, bundle)
    print(f"{bundle}: {', '.join(info.file for info in wanted)}")


@app.command("import")
def import_bundle(
    bundle: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
) -> None:
    """Take the weights of a bundle into the vault, each checked by its full hash."""
    for info in weights_bundle.import_bundle(*_vault(), bundle):
        print(f"{info.architecture} {info.name} {info.file}")


def _as_json(row: weights_bundle.WeightsStatus) -> dict[str, str | bool | None]:
    return {
        "architecture": row.info.architecture,
        "weights": row.info.name,
        "file": row.info.file,
        "downloaded": row.downloaded,
        "verified": row.verified,
        "sha256": row.sha256,
    }


def _vault() -> tuple[WeightsVault, Catalogue]:
    settings = load_settings()
    catalogue = Catalogue.load(extra_files=[Path(path) for path in settings.weights_catalog])
    vault = WeightsVault(
        settings.data_dir / "weights",
        settings.weights_sources,
        offline=settings.offline,
        egress=settings.egress,
    )
    return vault, catalogue
