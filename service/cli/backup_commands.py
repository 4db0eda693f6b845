"""`graft backup` and `graft restore`: on the data folder and the database themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.backup.folder import BackupFolder, Snapshot
from jobs.backup.restore import restore_backup
from jobs.backup.take import Report, Source, take_backup
from jobs.backup.unfinished import require_whole
from jobs.backup.verify import verify_backup
from jobs.store.database import Database
from models_cache import faults
from service.cli.configuration import load_settings
from service.version import VERSION

_MEGABYTE = 1 << 20
_SHOWN = 20  # rows that lack files, named

app = typer.Typer(help="Copy rows and files while the service runs.", invoke_without_command=True)

Which = Annotated[
    str | None, typer.Option("--snapshot", help="Which backup; default: the newest of the folder.")
]


@app.callback()
def backup(
    context: typer.Context,
    to: Annotated[
        Path | None,
        typer.Option(
            help="A new or empty folder, or one with earlier backups: then only what is"
            " new is copied."
        ),
    ] = None,
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="Also copy the pretrained weights.")
    ] = False,
) -> None:
    """Back up the service, which may be running; status 1 if files are missing or damaged."""
    if context.invoked_subcommand is not None:
        return
    if to is None:
        raise typer.BadParameter("say where to: graft backup --to FOLDER")
    settings = load_settings()
    os.umask(0o077)
    require_whole(settings.data_dir)
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    database = Database(settings.database_address)
    source = Source(database, settings.data_dir, VERSION)
    try:
        with _bar() as report:
            made = take_backup(source, to, with_weights=with_weights, report=report)
    finally:
        database.close()
    print(_described(made))
    for owner, names in list(made.missing.items())[:_SHOWN]:
        print(f"  not in the backup: {len(names)} files of {owner} are gone or damaged")
    if made.missing:
        raise typer.Exit(1)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder with backups.")],
    snapshot: Which = None,
) -> None:
    """Read every file of a backup again; status 1 if one is not what it should be."""
    backups = BackupFolder.find(folder)
    found = backups.snapshot(snapshot)
    with _bar() as report:
        verify_backup(backups, found, report)
    print(f"whole: {_described(found)}")
    print(f"complete backups: {', '.join(backups.ids())}")
    if backups.incomplete():
        print("one was begun and not finished; the next `graft backup` tidies up")


def restore(
    source: Annotated[Path, typer.Option("--from", help="A folder with backups.")],
    snapshot: Which = None,
) -> None:
    """Bring a backup back into an empty data folder and an empty database.

    Status 1 if rows came back whose files were missing when the backup was made.
    """
    settings = load_settings()
    os.umask(0o077)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    backups = BackupFolder.find(source)
    database = Database(settings.database_address)
    try:
        with _bar() as report:
            restored = restore_backup(
                backups, backups.snapshot(snapshot), settings.data_dir, database, report
            )
    finally:
        database.close()
    print(f"restored into {settings.data_dir}: {_described(restored.snapshot)}")
    if restored.queued_again:
        print(f"{len(restored.queued_again)} jobs that ran begin again: start the service")
    if restored.fetched:
        names = ", ".join(restored.fetched)
        print(f"models wait for the weights of {names}, which are fetched: start the service")
    for owner, files in list(restored.broken.items())[:_SHOWN]:
        print(f"  {owner} lacks {files} files")
    if restored.broken:
        raise typer.Exit(1)


def _described(snapshot: Snapshot) -> str:
    rows = sum(table.rows for table in snapshot.tables)
    files = sum(1 for _ in snapshot.contents())
    size = f"{snapshot.size_bytes / _MEGABYTE:.1f} MiB"
    return f"backup {snapshot.id} of {rows} rows ({snapshot.database}) and {files} files, {size}"


@contextmanager
def _bar() -> Iterator[Report]:
    """Yield a report that draws a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        tasks: dict[str, int] = {}

        def report(what: str, done_bytes: int, total_bytes: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total_bytes)
            progress.update(tasks[what], completed=done_bytes)  # type: ignore[arg-type]

        yield report
