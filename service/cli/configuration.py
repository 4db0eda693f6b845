"""Reads the settings for a command, or says in one line per fault what is wrong with them."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from service.settings import Settings
from service.supervisor import MISCONFIGURED_STATUS


def load_settings() -> Settings:
    """Return the settings.

    Raises:
        typer.Exit: They are wrong; which and why was printed. The status tells the supervisor
            that starting again would not help.
    """
    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in fault["loc"])
            where = f"GRAFT_{name.upper()}: " if name else ""
            print(f"graft: {where}{fault['msg']}", file=sys.stderr)
        raise typer.Exit(MISCONFIGURED_STATUS) from None
