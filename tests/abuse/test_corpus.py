"""Every case of the catalogue, on a real service: it answers as expected and is as it was after.

One run of all cases, since many share an upload; each case is a test of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest

from tests.abuse.case import Archive, Call, Case, Raw
from tests.abuse.corpus import CASES, Result, run, start_service
from tests.abuse.sending import Target, send
from tests.abuse.watching import memory_bytes
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.database]

_LEAST_CASES = 250
_MIB = 1 << 20
_REPEATS = 100
#: The cases that cost a service most, or that cost others most.
_WORST = (
    "A09-200", "A15-few-declared", "A25-png", "E04-deep", "FH02-cl-te", "FH03-million",
    "FH03-trailer", "FH04-20m", "FH04-count", "FH10-header", "FH10-fields", "H03-33",
)  # fmt: skip


@dataclass(frozen=True)
class Abused:
    """A service after all cases, still running."""

    service: RunningService
    result: Result


@pytest.fixture(scope="module")
def abused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Abused]:
    canary = tmp_path_factory.mktemp("abuse") / "canary"
    with start_service(canary) as service:
        yield Abused(service, run(service, canary))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(abused: Abused, case: Case) -> None:
    record = abused.result.records[case.id]
    assert record.outcome == case.expect, case.what
    assert record.broken == [], case.what
    assert case.finds <= record.finds, case.what


def test_there_are_enough_cases_and_each_has_its_own_number() -> None:
    numbers = Counter(case.id for case in CASES)
    assert len(numbers) >= _LEAST_CASES
    assert set(numbers.values()) == {1}


def test_nothing_is_left_of_what_was_refused(abused: Abused) -> None:
    assert abused.result.leftovers == []


def test_the_log_has_no_traceback_and_nothing_that_a_terminal_obeys(abused: Abused) -> None:
    assert abused.result.log_faults == []


def test_memory_and_open_files_are_what_they_were(abused: Abused) -> None:
    assert abused.result.grown_bytes < 64 * _MIB
    assert abused.result.more_files < 8


@pytest.mark.parametrize("number", _WORST)
def test_a_hundred_repeats_take_no_memory(abused: Abused, number: str) -> None:
    """As NVIDIA Triton tests its own: after a warm-up, less than 1 MiB per 100 requests."""
    case = next(case for case in CASES if case.id == number)
    body = (case.send.parts[0] if isinstance(case.send, Raw) else case.send.body)()  # type: ignore[union-attr]  # no worst case is a row
    target = Target(abused.service.url, {"model": "healthy", "dataset": "ds_absent"})
    request: Archive | Call | Raw
    if isinstance(case.send, Raw):
        request = Raw((lambda: body,))
    elif isinstance(case.send, Archive):
        request = Archive(lambda: body)
    else:
        assert isinstance(case.send, Call)
        request = Call(case.send.method, case.send.path, lambda: body, case.send.headers)
    api = abused.service.pids()["api"]
    with httpx2.Client(base_url=target.url, timeout=60, trust_env=False) as http:
        for _ in range(_REPEATS // 2):
            send(target, http, request, "repeated")
        before = memory_bytes(api)
        outcomes = {send(target, http, request, "repeated").outcome for _ in range(_REPEATS)}
        grown = memory_bytes(api) - before
    assert outcomes == {case.expect}
    assert grown < _MIB, f"{grown / _MIB:.1f} MiB"
