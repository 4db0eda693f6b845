"""`graft keys create | list | rotate | revoke`: on the machine itself, through its database.

Whoever can read the database needs no key; so the first one is made here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated

import typer

from jobs.backup.unfinished import require_whole
from jobs.issuing import Issued, Wish, issue, renew
from jobs.key_errors import ApiKeyNotFound
from jobs.keys import PROJECT_PATTERN, Limits, Scope
from jobs.store import keys
from jobs.store.database import Database
from jobs.store.tables import DEFAULT_PROJECT
from service.cli.client_commands import AsJson, print_list
from service.cli.configuration import load_settings
from service.key_schemas import KeyBody
from service.services import checked_name

app = typer.Typer(help="API keys of the service on this machine.", no_args_is_help=True)

_Bound = Annotated[int | None, typer.Option(min=1, help="Default: as the settings say.")]
KeyId = Annotated[str, typer.Argument(help="Id of the key, `key_...`.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Option(help="For people.")] = "key",
    project: Annotated[
        str, typer.Option(help="All that is made with the key belongs there.")
    ] = DEFAULT_PROJECT,
    scope: Annotated[Scope, typer.Option(help="Each may do what is before it.")] = Scope.TRAIN,
    days: Annotated[float | None, typer.Option(min=0.001, help="Default: until revoked.")] = None,
    requests_per_minute: _Bound = None,
    unfinished_jobs: _Bound = None,
    datasets: _Bound = None,
    stored_bytes: _Bound = None,
) -> None:
    """Make a key and print it: the only time that it is seen."""
    if re.fullmatch(PROJECT_PATTERN, project) is None:
        raise typer.BadParameter(f"a project is called like {PROJECT_PATTERN}")
    wish = Wish(
        project,
        checked_name(name, "/name"),
        scope,
        Limits(requests_per_minute, unfinished_jobs, datasets, stored_bytes),
        None if days is None else timedelta(days=days),
    )
    with _database() as database, database.write("key_create") as connection:
        issued = issue(connection, wish)
    _show(issued)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys of every project, oldest first, those that have ended too."""
    with _database() as database, database.read() as connection:
        found = keys.of_every_project(connection)
    bodies = [KeyBody.of(key).model_dump(mode="json") for key in found]
    columns = ["id", "project", "name", "scope", "expires_at", "revoked_at", "last_used_at"]
    print_list(bodies, columns, as_json)


@app.command("rotate")
def rotate(
    key_id: KeyId,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="So long the old secret opens the key, too.")
    ] = 24,
) -> None:
    """Give a key a new secret and print it."""
    with _database() as database, database.write("key_rotate") as connection:
        project = _project_of(keys.of_every_project(connection), key_id)
        issued = renew(connection, key_id, project, timedelta(hours=grace_hours))
    _show(issued)


@app.command("revoke")
def revoke(key_id: KeyId) -> None:
    """End a key for good; a running service notices within seconds."""
    with _database() as database, database.write("key_revoke") as connection:
        project = _project_of(keys.of_every_project(connection), key_id)
        keys.revoke(connection, key_id, project)


@contextmanager
def _database() -> Iterator[Database]:
    settings = load_settings()
    require_whole(settings.data_dir)  # a row now, and the restore would take all rows for there
    os.umask(0o077)  # as the service does: the folder may be new
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_address)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


def _project_of(found: list[keys.ApiKey], key_id: str) -> str:
    for key in found:
        if key.id == key_id:
            return key.project
    raise ApiKeyNotFound(key_id)


def _show(issued: Issued) -> None:
    key = issued.key
    ends = f"until {_day(key.expires_at)}" if key.expires_at else "until it is revoked"
    told = f"{key.id}: project {key.project}, scope {key.scope}, {ends}; keep it, it is not stored:"
    print(told, file=sys.stderr)
    print(issued.secret)


def _day(at: datetime) -> str:
    return at.isoformat(timespec="minutes")
