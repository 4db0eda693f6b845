"""What must survive a power cut is flushed, named, flushed as a name and only then pointed to."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from jobs.progress import ProgressWriter
from jobs.store.database import Database
from jobs.training.checkpoint import Checkpoints
from models_cache import durable, faults
from models_cache.blobs import BlobStore
from service import upload_parts
from service.upload_parts import Announced, Outcome
from service.uploads import Upload
from tests.faults.flush_order import COMMIT, Call, faults_of_order, recorded_calls


def test_the_judge_finds_what_is_missing() -> None:
    good = [Call("fsync", "/d/.a"), Call("rename", "/d/.a", "/d/a"), Call("fsync", "/d")]
    assert faults_of_order([*good, Call(COMMIT)]) == []
    assert len(faults_of_order(good[1:])) == 1
    assert len(faults_of_order(good[:2])) == 1
    assert len(faults_of_order([*good[:2], Call(COMMIT), good[2]])) == 1
    assert len(faults_of_order([good[1]])) == 2


def test_files_are_durable_before_they_are_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    received = [tmp_path / f"received-{number}" for number in range(3)]
    for path in received:
        path.write_bytes(path.name.encode())
    with recorded_calls(monkeypatch) as calls:
        durable.write_bytes(tmp_path / "file", b"1")
        blobs.put_bytes(b"2")
        blobs.put_file(received[0])
        blobs.put_files({durable.sha256_of_file(path): path for path in received[1:]})
        calls.append(Call(COMMIT))
        Checkpoints(tmp_path / "checkpoints").save({"weight": torch.zeros(3)}, {"step": 1})
        calls.append(Call(COMMIT))
    assert len([call for call in calls if call.name == "rename"]) == 7
    assert faults_of_order(calls) == []


def test_parts_of_an_upload_are_durable_when_they_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"bytes")
    received = Upload(part, durable.sha256_of_file(part), 5, "a.zip")
    announced = Announced("default", "a.zip", 5, 0)
    with recorded_calls(monkeypatch) as calls:
        upload = upload_parts.begin(tmp_path, "upload_1", announced)
        calls.append(Call(COMMIT))
        upload_parts.add_part(upload, received)
        calls.append(Call(COMMIT))
        upload_parts.end(upload, Outcome("completed", "ds_1"))
    assert len([call for call in calls if call.name == "rename"]) == 3
    assert faults_of_order(calls) == []


def test_a_result_is_flushed_before_the_worker_can_act_on_the_end_of_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = ProgressWriter(tmp_path / "progress.jsonl")
    with recorded_calls(monkeypatch) as calls:
        progress.log("a line that may be lost")
        assert calls == []
        progress.result({})
        progress.candidate({})
    assert calls == [Call("fsync", str(tmp_path / "progress.jsonl"))] * 2


def test_a_commit_is_flushed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'graft.db'}")
    with database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    database.close()


@pytest.mark.parametrize("stage", ["before_fsync", "before_rename", "after_rename"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_reader_finds_all_or_nothing_of_a_write_that_is_killed(
    tmp_path: Path, stage: str, before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        durable.write_bytes(path, before)
    child = multiprocessing.get_context("fork").Process(target=_write, args=(path, stage))
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    found = path.read_bytes() if path.exists() else None
    assert found == (b"new" if stage == "after_rename" else before)


def _write(path: Path, stage: str) -> None:
    faults.arm(f"file.{stage}=kill", path.parent / "faults")
    with durable.writing(path) as file:
        for byte in b"new":
            file.write(bytes([byte]))
            file.flush()
            os.fsync(file.fileno())
