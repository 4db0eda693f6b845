"""`graft doctor` without a data set: what of this machine keeps the service from working."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from service.checkup.examination import examine
from service.checkup.finding import Finding, Severity
from service.settings import Settings

_STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "red"}


def examine_machine(settings: Settings, *, as_json: bool) -> bool:
    """Print what every check finds; True if there is a problem."""
    console = Console(soft_wrap=True)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            _tell(console, finding)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return any(finding.severity is Severity.PROBLEM for finding in findings)


def _tell(console: Console, finding: Finding) -> None:
    style = _STYLES[finding.severity]
    console.print(f"[{style}]{finding.severity:8}[/] {finding.check:18} {escape(finding.found)}")
    if finding.advice:
        console.print(f"{'':27} -> {escape(finding.advice)}")
