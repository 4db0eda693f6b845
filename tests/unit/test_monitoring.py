"""Dashboard and alert rules by a parser of PromQL; their names are judged in `test_metrics`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest

from tests.monitoring import FOLDER, expressions, panels, rules

_OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def test_every_expression_is_promql() -> None:
    assert len(expressions()) > 40
    for text in expressions():
        promql_parser.parse(text)
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(rate(graft_x[5m])")


def test_every_alert_has_a_severity_and_a_place_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", _OPERATIONS.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["runbook"].removeprefix("#") in anchors, rule["alert"]


def test_panels_lie_beside_each_other_and_have_a_unit() -> None:
    taken: set[tuple[int, int]] = set()
    identities = [panel["id"] for panel in panels()]
    assert len(identities) == len(set(identities))
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    assert json.loads((FOLDER / "grafana-dashboard.json").read_text())["uid"] == "graft"
