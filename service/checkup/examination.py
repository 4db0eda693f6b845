"""Runs every check; one that fails itself is a problem like any other."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from service.checkup.database import check_database
from service.checkup.finding import Check, Finding, problem
from service.checkup.folder import check_folder
from service.checkup.machine import check_machine
from service.checkup.running import check_running
from service.checkup.weights import check_weights
from service.settings import Settings

log = logging.getLogger(__name__)

CHECKS: dict[str, Check] = {
    "folder": check_folder,
    "database": check_database,
    "running": check_running,
    "weights": check_weights,
    "machine": check_machine,
}


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found, as it is found."""
    for name, check in CHECKS.items():
        try:
            yield from check(settings)
        except Exception as error:
            log.debug("the check %s failed", name, exc_info=True)
            said = f"the check could not be ended: {type(error).__name__}: {error}"
            yield problem(name, said, "this machine is stranger than we thought: please report it")
