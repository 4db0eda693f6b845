"""`graft gc`: what may go from the data folder, with bytes and why; `--delete` removes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.backup.unfinished import require_whole
from jobs.garbage import Garbage, Item, collect, find_garbage
from jobs.store.database import Database
from models_cache import faults
from service.cli.client_commands import AsJson
from service.cli.configuration import load_settings

_SHOWN = 20
_MEGABYTE = 1 << 20


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; else only list it.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even if most files that rows point to are not there."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what no row points to and what is kept long enough; the service may be running."""
    settings = load_settings()
    require_whole(settings.data_dir)
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    database = Database(settings.database_address)
    freed_bytes = None
    try:
        database.migrate()
        if delete:
            garbage, freed_bytes = collect(
                database, settings.data_dir, settings.retention, force=force
            )
        else:
            garbage = find_garbage(database, settings.data_dir, settings.retention)
            if not force:
                garbage.require_plausible()
    finally:
        database.close()
    if as_json:
        print(json.dumps(_as_json(garbage, freed_bytes), indent=2))
    else:
        _tell(garbage, freed_bytes)


def _as_json(garbage: Garbage, freed_bytes: int | None) -> dict[str, object]:
    items = [
        {"path": str(item.path), "bytes": item.size_bytes, "why": item.reason}
        for item in garbage.items()
    ]
    return {"items": items, "figures": garbage.figures, "freed_bytes": freed_bytes}


def _tell(garbage: Garbage, freed_bytes: int | None) -> None:
    console = Console()
    items = sorted(garbage.items(), key=lambda item: -item.size_bytes)
    table = Table("bytes", "why", "what")
    for item in items[:_SHOWN]:
        table.add_row(str(item.size_bytes), item.reason, escape(str(item.path)))
    if items:
        console.print(table)
    if len(items) > _SHOWN:
        console.print(f"... and {len(items) - _SHOWN} more; --json lists all")
    for line in _totals(items):
        console.print(line)
    if garbage.figures:
        console.print(f"{garbage.figures} figures by step of jobs that ended long ago")
    if not items and not garbage.figures:
        console.print("nothing may go")
    elif freed_bytes is None:
        console.print("nothing was removed; `graft gc --delete` does")
    else:
        console.print(f"removed: {freed_bytes / _MEGABYTE:.1f} MiB")


def _totals(items: list[Item]) -> Iterator[str]:
    sizes: Counter[str] = Counter()
    for item in items:
        sizes[item.reason] += item.size_bytes
    numbers = Counter(item.reason for item in items)
    for reason, size_bytes in sizes.most_common():
        yield f"{numbers[reason]} ({size_bytes / _MEGABYTE:.1f} MiB): {reason}"
