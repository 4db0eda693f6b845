"""Puts the figures of the last long runs together: `python -m tests.scorecard` (`make scorecard`).

Reads `build/scorecard/*.json`, each a `{"name", "value", "target", "ok"}` or a list of them, as
`make soak`, `make abuse` and `benchmarks/slow_connections.py` write them; prints them as JSON and
replaces the table in `docs/reliability.md`. A figure that nobody has measured since the folder was
emptied is in the table as such. Ends with 1 unless every figure is there and meets its target.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.soak import FIGURES

_REPOSITORY = Path(__file__).resolve().parents[1]
_PAGE = _REPOSITORY / "docs" / "reliability.md"
_BEGIN, _END = "<!-- scorecard: begin -->\n", "<!-- scorecard: end -->\n"

#: Name of each figure, and what makes it.
EXPECTED = {
    **{
        f"{what}, {kind}": "make abuse"
        for kind in ("sqlite", "postgresql")
        for what in ("abuse cases tried", "abuse cases as specified", "abuse cases with a 5xx")
    },
    "abuse cases that the databases answer differently": "make abuse",
    "random-kills": "make soak",
    "mutants-caught": "make mutants",
    "zombie-writes": "make soak",
    "drains": "make soak",
    "disk-full-stages": "make soak",
    "foreign-id-matrix": "make test",
    "slow-connections": "benchmarks/slow_connections.py",
}


@dataclass(frozen=True)
class Figure:
    """One line of the scorecard.

    Args:
        name: What was measured.
        value: What came out; None if nobody measured it.
        target: What should come out.
        ok: Whether it did.
    """

    name: str
    value: float | str | None
    target: float | str
    ok: bool


def read_figures(folder: Path) -> list[Figure]:
    """Return what was measured, and what is missing, in the order of `EXPECTED`."""
    found: dict[str, Figure] = {}
    for path in sorted(folder.glob("*.json")):
        said = json.loads(path.read_text())
        for record in said if isinstance(said, list) else [said]:
            found[record["name"]] = Figure(**record)
    missing = {
        name: Figure(name, None, f"see `{command}`", ok=False)
        for name, command in EXPECTED.items()
        if name not in found
    }
    ordered = [found.get(name) or missing[name] for name in EXPECTED]
    return [*ordered, *(found[name] for name in sorted(found.keys() - EXPECTED.keys()))]


def table(figures: Iterable[Figure], about: str) -> str:
    """Return the figures as Markdown."""
    rows = [
        f"| {f.name} | {'not measured' if f.value is None else f.value} | {f.target} "
        f"| {'yes' if f.ok else 'no'} |"
        for f in figures
    ]
    head = ["| figure | measured | target | met |", "|---|---|---|---|"]
    return "\n".join([about, "", *head, *rows]) + "\n"


def with_table(page: str, new: str) -> str:
    """Return the page with its table replaced.

    Raises:
        ValueError: The page has no place for it.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page lacks {_BEGIN.strip()} and {_END.strip()}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def main() -> int:
    """Print the figures, write the table."""
    figures = read_figures(FIGURES)
    sys.stdout.write(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    _PAGE.write_text(with_table(_PAGE.read_text(), table(figures, _about())))
    return 0 if all(figure.ok for figure in figures) else 1


def _about() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    day = datetime.now(UTC).date().isoformat()
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}"
    return f"Put together on {day} at commit {commit.stdout.strip() or 'unknown'}; {machine}."


if __name__ == "__main__":
    sys.exit(main())
