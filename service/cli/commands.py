"""Every command of `graft`, put together."""

from __future__ import annotations

import sys

import httpx2
import typer

from jobs.keys import without_keys
from service.cli import (
    backup_commands,
    batch_command,
    client_commands,
    database_commands,
    demo,
    doctor,
    evaluate_command,
    export_command,
    feedback_commands,
    gc_command,
    key_commands,
    processes,
    race_command,
    weights_commands,
)
from service.cli.submit import submit
from service.client import DatasetRejected, GraftProblem, JobFailed

app = typer.Typer(
    name="graft",
    help="Upload labelled images, get a served vision model in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
processes.add_to(app)
app.command()(submit)
client_commands.add_to(app)
app.command("race")(race_command.race)
app.command("batch")(batch_command.batch)
app.command("evaluate")(evaluate_command.evaluate)
app.command("export")(export_command.export)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("gc")(gc_command.gc)
app.add_typer(backup_commands.app, name="backup")
app.command("restore")(backup_commands.restore)
app.add_typer(database_commands.app, name="database")
app.add_typer(feedback_commands.app, name="feedback")
app.add_typer(weights_commands.app, name="weights")
app.add_typer(key_commands.app, name="keys")


def run() -> None:
    """Run a command; an error that a person can act on is one line and status 1."""
    try:
        app()
    except (GraftProblem, JobFailed, DatasetRejected, TimeoutError) as error:
        sys.exit(f"graft: {without_keys(str(error))}")
    except httpx2.ConnectError as error:
        sys.exit(f"graft: the service does not answer ({error}); is `graft serve` running?")
