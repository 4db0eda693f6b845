"""`graft database copy`: the rows of a stopped service, into another database."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy.engine import make_url

from jobs.backup.database_copy import copy_database
from jobs.backup.unfinished import require_whole
from jobs.store.database import Database
from service.cli.configuration import load_settings

app = typer.Typer(help="The database of the service.", no_args_is_help=True)


@app.callback()
def database() -> None:
    """Work with the database of the service."""


@app.command()
def copy(
    to: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="An empty database: postgresql+psycopg://... or sqlite:////path."
        ),
    ],
) -> None:
    """Copy every row into an empty database; the service is stopped, files stay where they are."""
    settings = load_settings()
    os.umask(0o077)  # a new SQLite file is as private as the data folder
    require_whole(settings.data_dir)
    source, target = Database(settings.database_address), Database(to)
    try:
        copied = copy_database(source, target, timedelta(seconds=settings.lease_seconds))
    finally:
        source.close()
        target.close()
    for name, count in sorted(copied.items()):
        print(f"{count:>10} {name}")
    shown = make_url(to).render_as_string(hide_password=True)
    print(f"copied, and counted again; start the service with GRAFT_DATABASE_URL={shown}")
