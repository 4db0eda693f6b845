"""The figures of a job as files: one series whatever happened, readable by others' readers."""

from __future__ import annotations

import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from jobs.metrics_files import EVENTS_NAME, METRICS_NAME, MetricsFiles
from jobs.progress import FILE_NAME, ProgressWriter, read_progress


class Child:
    """One attempt: what it reports, and what its worker makes of it."""

    def __init__(self, run_folder: Path, attempt: int) -> None:
        self._path = run_folder / str(attempt) / FILE_NAME
        self._path.parent.mkdir(parents=True)
        self.progress = ProgressWriter(self._path)
        self._files = MetricsFiles(run_folder, attempt)
        self._offset_bytes = 0

    def attend(self) -> None:
        lines, self._offset_bytes = read_progress(self._path, self._offset_bytes)
        self._files.take(lines, self._offset_bytes)


def lines_in(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / METRICS_NAME).read_bytes().splitlines()]


def steps_in(run_folder: Path, name: str) -> list[int]:
    return [line["step"] for line in lines_in(run_folder) if name in line]


def events_in(path: Path) -> list[Event]:
    """Read an event file with the code of another project, checksums included."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        crcs = struct.unpack("<I", data[8:12]) + struct.unpack("<I", data[12 + length :][:4])
        assert crcs == (masked(data[:8]), masked(body))
        event = Event()
        event.ParseFromString(body)
        events.append(event)
        data = data[16 + length :]
    return events


def masked(data: bytes) -> int:
    crc: int = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_figures_stand_in_both_files_as_they_were_reported(tmp_path: Path) -> None:
    child = Child(tmp_path, 1)
    child.progress.metrics(0, {"val/accuracy_top1": 0.5}, 0.0)
    child.progress.phase("train")
    child.attend()
    child.progress.metrics(300, {"train/loss": 0.25, "größe/ß": -1e30}, 1.5)
    child.progress.result({"metrics": {"val/accuracy_top1": 0.75}})
    child.attend()
    first, second, final = lines_in(tmp_path)
    assert first.items() >= {"step": 0, "epoch": 0.0, "val/accuracy_top1": 0.5}.items()
    assert second.items() >= {"step": 300, "epoch": 1.5, "train/loss": 0.25}.items()
    assert final.items() >= {"step": 300, "final/val/accuracy_top1": 0.75}.items()
    header, *events = events_in(tmp_path / EVENTS_NAME)
    assert header.file_version == "brain.Event:2"
    assert len(events) == 3
    for event, line in zip(events, lines_in(tmp_path), strict=True):
        time = datetime.fromisoformat(line.pop("time")).timestamp()
        assert event.wall_time == pytest.approx(time, abs=1e-5)
        assert event.step == line.pop("step")
        del line["epoch"]
        found = {value.tag: value.simple_value for value in event.summary.value}
        assert found == pytest.approx(line)


def test_steps_that_a_further_attempt_makes_again_stand_there_once(tmp_path: Path) -> None:
    first = Child(tmp_path, 1)
    for step in (0, 8, 16, 24):
        first.progress.metrics(step, {"train/loss": 1.0, "val/loss": 2.0})
    first.attend()
    second = Child(tmp_path, 2)
    second.progress.phase("train")
    second.attend()
    assert steps_in(tmp_path, "train/loss") == [0, 8, 16, 24]
    second.progress.metrics(16, {"val/loss": 3.0})  # measured again from the checkpoint of step 16
    second.attend()
    assert steps_in(tmp_path, "train/loss") == [0, 8, 16]
    assert steps_in(tmp_path, "val/loss") == [0, 8, 16]
    second.progress.metrics(24, {"train/loss": 1.0})
    second.attend()
    assert steps_in(tmp_path, "train/loss") == [0, 8, 16, 24]
    events = events_in(tmp_path / EVENTS_NAME)[1:]
    assert [event.step for event in events] == [line["step"] for line in lines_in(tmp_path)]


def test_what_a_lost_worker_did_not_write_is_made_up_for(tmp_path: Path) -> None:
    unseen = Child(tmp_path, 1)
    unseen.progress.metrics(0, {"val/loss": 2.0})
    unseen.progress.metrics(8, {"val/loss": 1.0})
    second = Child(tmp_path, 2)
    second.progress.metrics(16, {"val/loss": 0.5})
    second.attend()
    assert steps_in(tmp_path, "val/loss") == [0, 8, 16]


def test_files_that_could_not_be_written_are_made_again(tmp_path: Path) -> None:
    child = Child(tmp_path, 1)
    child.progress.metrics(0, {"val/loss": 2.0})
    child.attend()
    (tmp_path / EVENTS_NAME).unlink()
    child.progress.metrics(8, {"val/loss": 1.0})
    child.attend()  # the append fails
    child.progress.metrics(16, {"val/loss": 0.5})
    child.attend()
    assert steps_in(tmp_path, "val/loss") == [0, 8, 16]
    assert [event.step for event in events_in(tmp_path / EVENTS_NAME)] == [0, 0, 8, 16]


def test_head_that_was_fitted_twice_is_measured_once(tmp_path: Path) -> None:
    for attempt in (1, 2):
        child = Child(tmp_path, attempt)
        child.progress.result({"metrics": {"val/loss": 0.5}})
        child.attend()
    assert steps_in(tmp_path, "final/val/loss") == [0]
