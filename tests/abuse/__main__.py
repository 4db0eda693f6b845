"""`python -m tests.abuse [FILE.json]`: every case on SQLite and on PostgreSQL, as figures.

Writes a list of `{"name", "value", "target", "ok"}`, and prints what was not as specified.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.abuse.corpus import CASES, Result, run, start_service
from tests.abuse.watching import same
from tests.databases import postgresql

_LEAST_CASES = 250
_PLANNED = (503, 507)


def figure(name: str, value: int, target: str, ok: bool) -> dict[str, Any]:
    """Return one line of the scorecard."""
    return {"name": name, "value": value, "target": target, "ok": ok}


def figures_of(kind: str, result: Result) -> list[dict[str, Any]]:
    """Return what one run says."""
    records = result.records
    wrong = [
        case
        for case in CASES
        if records[case.id].outcome != case.expect
        or records[case.id].broken
        or not case.finds <= records[case.id].finds
    ]
    for case in wrong:
        record = records[case.id]
        sys.stdout.write(f"{kind} {case.id}: {record.outcome}, {record.broken}\n")
    statuses = [record.outcome.status for record in records.values()]
    errors = sum(status >= 500 and status not in _PLANNED for status in statuses)
    hangs = sum(status == 0 for status in statuses)
    specified = len(CASES) - len(wrong)
    return [
        figure(f"abuse cases tried, {kind}", len(records), ">= 250", len(records) >= _LEAST_CASES),
        figure(f"abuse cases as specified, {kind}", specified, str(len(CASES)), not wrong),
        figure(f"abuse cases with a 5xx, {kind}", errors, "0", errors == 0),
        figure(f"abuse cases without an answer, {kind}", hangs, "0", hangs == 0),
        figure(f"files left by abuse, {kind}", len(result.leftovers), "0", not result.leftovers),
        figure(
            f"MiB that the api grew by, {kind}",
            result.grown_bytes >> 20,
            "< 64",
            result.grown_bytes < 64 << 20,
        ),
    ]


def main() -> int:
    """Run the corpus on both databases; 0 if everything is as specified."""
    outcomes, figures = [], []
    for kind in ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory(prefix="graft-abuse-") as folder:
            canary = Path(folder) / "canary"
            url = postgresql().create("abuse") if kind == "postgresql" else _sqlite(canary)
            with start_service(canary, url) as service:
                result = run(service, canary)
        outcomes.append(result.outcomes)
        figures += figures_of(kind, result)
    differences = same(*outcomes)
    for difference in differences:
        sys.stdout.write(f"{difference}\n")
    figures.append(
        figure("abuse cases that the databases answer differently", len(differences), "0",
               not differences)
    )  # fmt: skip
    text = json.dumps(figures, indent=1)
    sys.stdout.write(f"{text}\n")
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0 if all(item["ok"] for item in figures) else 1


def _sqlite(canary: Path) -> str:
    return f"sqlite:///{canary / 'data' / 'graft.db'}"


if __name__ == "__main__":
    raise SystemExit(main())
