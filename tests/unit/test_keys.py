"""API keys as text, buckets of requests, and the audit log's files."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.keys import Limits, Scope, holds_key, is_well_formed, new_key, without_keys
from service.access_errors import AuditEntryNotFound
from service.audit import AuditLog
from service.rates import Rates


def test_keys_are_distinct_long_and_well_formed() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(key) for key in made} == {len("graft_") + 43 + 6}
    assert all(is_well_formed(key) for key in made)
    assert len({key[6] for key in made}) > 1


def test_every_typo_of_one_character_is_told() -> None:
    key = new_key()
    for place in range(len(key)):
        for other in "aB0-":
            if key[place] != other:
                assert not is_well_formed(key[:place] + other + key[place + 1 :])
    for wrong in ("", key[:-1], key + "0", f" {key}", key.upper(), key + "\n"):
        assert not is_well_formed(wrong)


def test_keys_are_left_out_of_texts_and_names_are_not() -> None:
    key = new_key()
    assert without_keys(f"no job {key}, nor {key[:45]}") == "no job graft_***, nor graft_***"
    assert holds_key(f"/v1/jobs?key={key}")
    for name in ("graft_photographs_of_ants", "graft_onnxmodelforsqueezenet"):
        assert without_keys(name) == name
        assert not holds_key(name)


def test_a_scope_covers_those_before_it() -> None:
    pairs = {(a.value, b.value) for a in Scope for b in Scope if a.covers(b)}
    assert pairs == {
        ("read", "read"),
        ("train", "read"),
        ("train", "train"),
        ("admin", "read"),
        ("admin", "train"),
        ("admin", "admin"),
    }


def test_limits_of_a_key_stand_before_those_of_the_service() -> None:
    own = Limits.of_json(Limits(datasets=3).as_json())
    assert own.or_else(Limits(datasets=9, stored_bytes=5)) == Limits(datasets=3, stored_bytes=5)


def test_a_bucket_refills_and_owners_do_not_share_it() -> None:
    now = [100.0]
    rates = Rates(lambda: now[0])
    assert [rates.take("a", 3) for _ in range(4)] == [None, None, None, 20]
    assert rates.take("b", 3) is None
    now[0] += 19
    assert rates.take("a", 3) == 1
    now[0] += 1.1
    assert rates.take("a", 3) is None
    now[0] += 1e6
    assert [rates.take("a", 3) for _ in range(4)] == [None, None, None, 20]


def entry(number: int, project: str | None = "p") -> dict[str, Any]:
    return {"number": number, "project": project, "path": "x" * 60}


def numbers(log: AuditLog, *projects: str | None) -> list[int]:
    """Return every entry of projects, page by page."""
    found: list[dict[str, Any]] = []
    while page := log.page(projects, 7, found[-1]["id"] if found else None):
        found += page
    return [item["number"] for item in found]


def test_audit_entries_come_newest_first_in_pages_over_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", 80_000)
    for number in range(300):
        log.append(entry(number, ["p", "q", None][number % 3]))
    assert len(list((tmp_path / "audit").glob("audit-*"))) > 2
    assert numbers(log, "p") == list(range(297, -1, -3))
    assert numbers(log, "q", None) == [n for n in range(299, -1, -1) if n % 3]
    assert numbers(log, "r") == []


def test_the_oldest_audit_file_goes_when_the_bound_is_reached(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", 8_000)
    for number in range(500):
        log.append(entry(number))
    kept = numbers(log, "p")
    assert kept == list(range(499, 499 - len(kept), -1))
    assert 20 < len(kept) < 100
    assert sum(path.stat().st_size for path in (tmp_path / "audit").glob("audit-*")) <= 8_000


def test_entries_of_others_and_invented_ones_are_no_cursor(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", 80_000)
    log.append(entry(1, "p"))
    log.append(entry(2, "q"))
    of_q = log.page(["q"], 1, None)[0]["id"]
    for cursor in (of_q, "aud_1_3", "aud_9_0", "x", "aud_1_999999"):
        with pytest.raises(AuditEntryNotFound):
            log.page(["p"], 1, cursor)


def test_a_line_that_a_dying_process_left_unfinished_costs_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    AuditLog(folder, 80_000).append(entry(1))
    with (folder / "audit-00000001.jsonl").open("ab") as file:
        file.write(b'{"number":2,"project":"p"')
    again = AuditLog(folder, 80_000)
    again.append(entry(3))
    assert numbers(again, "p") == [3, 1]


def test_a_line_that_a_full_disk_cut_costs_no_other(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", 80_000)
    log.append(entry(1))
    written = (tmp_path / "audit" / "audit-00000001.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (written + 30, hard))
    try:
        log.append(entry(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append(entry(3))
    assert numbers(log, "p") == [3, 1]


def test_two_writers_lose_nothing_when_files_change(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path / "audit", 400_000) for _ in range(2)]

    def write(which: int) -> None:
        for number in range(500):
            logs[which].append(entry(which * 1000 + number))

    threads = [threading.Thread(target=write, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(logs[0], "p")) == [*range(500), *range(1000, 1500)]
