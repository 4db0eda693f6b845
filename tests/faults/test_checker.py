"""The judge itself: a sound history passes, and each way of breaking it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from service.client import GraftProblem
from tests.faults.checker import violations
from tests.faults.final_state import FinalJob, FinalState, FinalVersion
from tests.faults.history import History, Operation, PatientClient, Unknown, read_history

PATH = (("queued", 0), ("running", 1), ("queued", 1), ("running", 2), ("succeeded", 2))
JOB = FinalJob("job_1", "fine_tune", "succeeded", 2, None, PATH, (1, 2, 3, 4, 5))
INGEST_PATH = (("queued", 0), ("running", 1), ("succeeded", 1))
INGEST = FinalJob("job_0", "ingest", "succeeded", 1, None, INGEST_PATH, (1, 2, 3))
HOLDER = "t"
VERSION = FinalVersion("m", 1, "job_1", "0" * 64)
SOUND = FinalState(
    jobs={"job_0": INGEST, "job_1": JOB}, datasets={"ds_1": "ready"}, versions=(VERSION,)
)


def operation(number: int, phase: str, name: str, key: str, resource: str | None) -> Operation:
    return Operation(number, phase, name, key, resource, float(number))  # type: ignore[arg-type]


HISTORY = [
    operation(1, "invoke", "upload", "data", None),
    operation(1, "ok", "upload", "data", "ds_1"),
    operation(2, "invoke", "submit", "a", None),
    operation(2, "info", "submit", "a", None),
    operation(3, "invoke", "submit", "a", None),
    operation(3, "ok", "submit", "a", "job_1"),
]


def kinds(final: FinalState, history: list[Operation] = HISTORY) -> set[str]:
    return {violation.kind for violation in violations(history, final)}


def with_job(job: FinalJob) -> FinalState:
    return replace(SOUND, jobs={"job_0": INGEST, "job_1": job})


def test_sound_history_has_no_violation() -> None:
    assert violations(HISTORY, SOUND) == []


def test_acknowledged_job_that_is_gone_is_lost() -> None:
    assert kinds(replace(SOUND, jobs={"job_0": INGEST}, versions=())) == {"lost"}


def test_acknowledged_data_set_that_is_gone_is_lost() -> None:
    assert kinds(replace(SOUND, datasets={})) == {"lost"}


def test_what_was_deleted_on_request_is_not_lost_and_must_be_gone() -> None:
    history = [*HISTORY, operation(4, "ok", "dataset_delete", "d", "ds_1")]
    assert kinds(replace(SOUND, datasets={}), history) == set()
    assert kinds(SOUND, history) == {"lost"}


def test_acknowledged_cancel_of_a_job_that_goes_on_is_lost() -> None:
    history = [*HISTORY, operation(4, "ok", "cancel", "cancel job_1", "job_1")]
    assert kinds(SOUND, history) == set()  # publication won the race
    paused = replace(JOB, status="paused", states=(("queued", 0), ("paused", 0)), attempt=0)
    final = replace(with_job(replace(paused, sequence=(1, 2))), versions=())
    assert kinds(final, history) == {"lost"}


def test_one_key_that_made_two_things_is_doubled() -> None:
    twin = replace(JOB, id="job_2")
    final = replace(
        SOUND,
        jobs={**SOUND.jobs, "job_2": twin},
        versions=(VERSION, replace(VERSION, version=2, job_id="job_2")),
    )
    history = [*HISTORY, operation(4, "ok", "submit", "a", "job_2")]
    assert kinds(final, history) == {"doubled"}


def test_job_that_nobody_asked_for_is_doubled() -> None:
    twin = replace(JOB, id="job_2")
    versions = (VERSION, replace(VERSION, version=2, job_id="job_2"))
    final = replace(SOUND, jobs={**SOUND.jobs, "job_2": twin}, versions=versions)
    assert kinds(final) == {"doubled"}


def test_second_version_of_a_job_is_doubled_unless_it_had_two_candidates() -> None:
    versions = (VERSION, replace(VERSION, version=2, artifact_digest="1" * 64))
    assert kinds(replace(SOUND, versions=versions)) == {"doubled"}
    both = replace(JOB, result={"candidates": [{}, {}]})
    assert kinds(replace(with_job(both), versions=versions)) == set()


def test_success_without_a_version_is_lost() -> None:
    assert kinds(replace(SOUND, versions=())) == {"lost"}


@pytest.mark.parametrize("status", ["queued", "running", "cancelling", "pausing"])
def test_job_that_did_not_come_to_rest_is_stuck(status: str) -> None:
    job = replace(JOB, status=status, states=(*PATH[:-1], (status, 2)))
    assert "stuck" in kinds(with_job(job))


def test_data_set_that_is_checked_for_ever_is_stuck() -> None:
    assert kinds(replace(SOUND, datasets={"ds_1": "processing"})) == {"stuck"}


def test_log_that_is_no_path_of_the_table_is_told() -> None:
    after_the_end = (*PATH, ("running", 3), ("succeeded", 3))
    job = replace(JOB, states=after_the_end, sequence=tuple(range(1, 8)), attempt=3)
    assert kinds(with_job(job)) == {"path"}
    assert kinds(with_job(replace(JOB, sequence=(1, 2, 4, 5, 6)))) == {"path"}
    assert kinds(with_job(replace(JOB, sequence=(1, 2, 2, 3, 4)))) == {"path"}
    assert kinds(with_job(replace(JOB, status="failed"))) == {"path"}


def test_attempts_that_do_not_count_up_by_one_are_broken_fencing() -> None:
    twice = (("queued", 0), ("running", 1), ("queued", 1), ("running", 1), ("succeeded", 1))
    assert kinds(with_job(replace(JOB, states=twice, attempt=1))) == {"fencing"}
    assert kinds(with_job(replace(JOB, attempt=3))) == {"fencing"}


def test_lease_of_an_ended_job_is_leaked_and_of_two_jobs_broken_fencing() -> None:
    held = replace(JOB, lease_token=HOLDER)
    assert kinds(with_job(held)) == {"leaked"}
    final = replace(SOUND, jobs={"job_0": replace(INGEST, lease_token=HOLDER), "job_1": held})
    assert kinds(final) == {"leaked", "fencing"}


def test_unusable_version_missing_file_and_unsound_database_are_torn() -> None:
    broken = replace(VERSION, problem="the file is missing")
    assert kinds(replace(SOUND, versions=(broken,))) == {"torn"}
    assert kinds(replace(SOUND, missing_files=("0" * 64,))) == {"torn"}
    assert kinds(replace(SOUND, database_is_sound=False)) == {"torn"}


def test_processes_and_temporary_files_that_are_left_are_leaked() -> None:
    assert kinds(replace(SOUND, processes=("train",))) == {"leaked"}
    final = replace(SOUND, temporary_files=("blobs/00/.x.tmp",))
    assert kinds(final) == {"leaked"}
    assert violations(HISTORY, final, swept=False) == []


def test_calls_are_recorded_as_they_end(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    assert history.call("submit", "a", lambda: {"id": "job_1"}) == {"id": "job_1"}

    def cut_off() -> None:
        raise httpx2.ReadError("gone")

    def refused(status: int) -> None:
        raise GraftProblem(status, {"code": "c", "detail": "d"})

    with pytest.raises(Unknown):
        history.call("submit", "b", cut_off)
    with pytest.raises(Unknown):
        history.call("submit", "c", lambda: refused(500))
    for status in (404, 507):
        with pytest.raises(GraftProblem):
            history.call("submit", "d", lambda status=status: refused(status))  # type: ignore[misc]
    lines = read_history(tmp_path / "history.jsonl")
    phases = [line.phase for line in lines if line.phase != "invoke"]
    assert phases == ["ok", "info", "info", "fail", "fail"]
    assert [line.number for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert lines[1].resource == "job_1"


def test_what_nobody_knows_is_repeated_with_its_key(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    client = PatientClient(None, history)  # type: ignore[arg-type]  # no call goes through it
    answers = iter([httpx2.ReadError("gone"), {"id": "job_1"}])

    def call() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert client.wish("submit", "a", call) == {"id": "job_1"}
    operations = read_history(tmp_path / "history.jsonl")
    assert [(op.phase, op.key) for op in operations] == [
        ("invoke", "a"),
        ("info", "a"),
        ("invoke", "a"),
        ("ok", "a"),
    ]
