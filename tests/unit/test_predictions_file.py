"""The file of a batch prediction: whole lines count, the rest is written again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.predictions_file import PredictionsFile, write_table

IDS = ["a", "b", "c"]
LINES = [{"image": name, "path": f"{name}.jpg", "label": "ant", "score": 0.5} for name in IDS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "predictions.jsonl"


def rows_of(path: Path) -> list[str]:
    return [json.loads(line)["image"] for line in path.read_bytes().splitlines()]


def test_lines_are_appended_and_counted(path: Path) -> None:
    with PredictionsFile(path, IDS) as file:
        file.append(LINES[:2])
        file.append(LINES[2:])
        assert file.rows == 3
    assert rows_of(path) == IDS


@pytest.mark.parametrize(
    "rest", [b'{"image": "b"', b'{"image": "b"}', b'{"image": "z"}\n', b"\0\0\n", b"[1]\n"]
)
def test_the_next_attempt_goes_on_behind_the_last_whole_line(path: Path, rest: bytes) -> None:
    with PredictionsFile(path, IDS) as file:
        file.append(LINES[:1])
    path.write_bytes(path.read_bytes() + rest + b'{"image": "c"}\n')
    with PredictionsFile(path, IDS) as file:
        assert file.rows == 1
        file.append(LINES[1:])
    assert rows_of(path) == IDS


def test_a_complete_file_stays_as_it_is(path: Path) -> None:
    with PredictionsFile(path, IDS) as file:
        file.append(LINES)
    before = path.read_bytes()
    with PredictionsFile(path, IDS) as file:
        assert file.rows == 3
    assert path.read_bytes() == before


def test_the_table_has_a_row_per_image_and_no_formulas(path: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a", "path": "=cmd()", "label": "ant", "score": 0.5},
        {"image": "b", "path": "b, and c.jpg", "labels": ["ant", "leaf"], "score": 0.25},
        {"image": "c", "path": "ü.jpg", "error": {"code": "unreadable-image", "message": "no"}},
    ]
    with PredictionsFile(path, IDS) as file:
        file.append(rows)
    table = tmp_path / "predictions.csv"
    write_table(path, table)
    with table.open(newline="", encoding="utf-8") as text:
        found = list(csv.DictReader(text))
    assert [row["path"] for row in found] == ["'=cmd()", "b, and c.jpg", "ü.jpg"]
    assert [row["label"] for row in found] == ["ant", "ant|leaf", ""]
    assert [row["score"] for row in found] == ["0.5", "0.25", ""]
    assert found[2]["error"] == "unreadable-image"
