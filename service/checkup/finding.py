"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from service.settings import Settings


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: It works, and may not for long, or less well than it could.
    WARNING = "warning"
    #: Something does not work, or is not safe.
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        check: What was looked at, in kebab-case.
        severity: How bad it is.
        found: What was found, with its numbers.
        advice: What to do now; empty if nothing has to be done.
    """

    check: str
    severity: Severity
    found: str
    advice: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def fine(check: str, found: str) -> Finding:
    """Return that a thing is as it should be."""
    return Finding(check, Severity.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return that a thing works and could be better."""
    return Finding(check, Severity.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return that a thing does not work or is not safe."""
    return Finding(check, Severity.PROBLEM, found, advice)
