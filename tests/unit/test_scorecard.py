"""The scorecard shows what was measured, and what was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scorecard import EXPECTED, Figure, read_figures, table, with_table


def test_figures_that_nobody_measured_are_named_and_count_as_missed(tmp_path: Path) -> None:
    kills = {"name": "random-kills", "value": "200 kills", "target": "200 kills", "ok": True}
    more = [{"name": "other", "value": 3, "target": 3, "ok": True}]
    (tmp_path / "random-kills.json").write_text(json.dumps(kills))
    (tmp_path / "more.json").write_text(json.dumps(more))
    figures = read_figures(tmp_path)
    assert [figure.name for figure in figures] == [*EXPECTED, "other"]
    assert {figure.name for figure in figures if figure.ok} == {"random-kills", "other"}
    assert "| drains | not measured | see `make soak` | no |" in table(figures, "")


def test_a_table_is_replaced_where_the_page_has_a_place_for_it() -> None:
    page = "# A\n<!-- scorecard: begin -->\nold\n<!-- scorecard: end -->\nafter\n"
    new = with_table(page, table([Figure("a", 1, 2, ok=False)], "today"))
    assert new.startswith("# A\n")
    assert new.endswith("after\n")
    assert "| a | 1 | 2 | no |" in new
    assert "old" not in new
    assert with_table(new, "x").count("scorecard: begin") == 1
    with pytest.raises(ValueError, match="scorecard"):
        with_table("# A\n", "x")
