"""What can be downloaded of a job's folder, and what cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.run_files import RUN_FILES, list_run_files, open_run_file


def content(run_folder: Path, attempt: int, name: str) -> bytes | None:
    opened = open_run_file(run_folder, attempt, name)
    if opened is None:
        return None
    data = b"".join(opened.chunks)
    assert len(data) == opened.size_bytes
    return data


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job_1"
    for attempt in (1, 2):
        (folder / str(attempt)).mkdir(parents=True)
        (folder / str(attempt) / "log.txt").write_text(f"attempt {attempt}")
        (folder / str(attempt) / "spec.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def test_files_of_the_newest_attempt_and_of_the_job_are_listed_and_read(run_folder: Path) -> None:
    assert list_run_files(run_folder, 2) == {"log.txt": 9, "metrics.jsonl": 3}
    assert content(run_folder, 2, "log.txt") == b"attempt 2"
    assert content(run_folder, 2, "metrics.jsonl") == b"{}\n"


def test_report_of_an_earlier_attempt_is_still_there(run_folder: Path) -> None:
    (run_folder / "1" / "data_report.json").write_text("{}")
    assert content(run_folder, 2, "data_report.json") == b"{}"


@pytest.mark.parametrize("name", ["spec.json", "../log.txt", "..", "", "1/log.txt", "/etc/passwd"])
def test_other_names_are_not_opened(run_folder: Path, name: str) -> None:
    assert open_run_file(run_folder, 2, name) is None


def test_links_pipes_and_folders_are_not_opened(run_folder: Path) -> None:
    secret = run_folder.parent / "secret"
    secret.write_text("secret")
    (run_folder / "2" / "log.txt").unlink()
    (run_folder / "1" / "log.txt").unlink()
    (run_folder / "2" / "log.txt").symlink_to(secret)
    os.mkfifo(run_folder / "2" / "progress.jsonl")
    (run_folder / "metrics.jsonl").unlink()
    (run_folder / "metrics.jsonl").mkdir()
    assert list_run_files(run_folder, 2) == {}
    assert [name for name in RUN_FILES if open_run_file(run_folder, 2, name)] == []


def test_of_a_long_log_the_end_is_sent(run_folder: Path) -> None:
    (run_folder / "2" / "log.txt").write_bytes(b"a" * (2 << 20) + b"the end")
    data = content(run_folder, 2, "log.txt")
    assert data is not None
    assert len(data) == 1 << 20
    assert data.endswith(b"the end")


def test_file_that_grows_while_it_is_sent_is_sent_as_it_was(run_folder: Path) -> None:
    opened = open_run_file(run_folder, 2, "metrics.jsonl")
    assert opened is not None
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    assert b"".join(opened.chunks) == b"{}\n"
