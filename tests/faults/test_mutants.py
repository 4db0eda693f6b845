"""The tests notice mistakes: two cheap ones here, all of them in `make mutants`."""

from __future__ import annotations

import pytest

from tests.faults.call_sites import REPOSITORY
from tests.faults.mutants import MUTANTS, caught

_IN_CI = ("no-fsync-of-the-folder", "no-limit-of-attempts")


def test_every_text_that_a_mutant_changes_is_there_once() -> None:
    for mutant in MUTANTS:
        assert (REPOSITORY / mutant.path).read_text().count(mutant.before) == 1, mutant.name
        assert (REPOSITORY / mutant.oracle[0].partition("::")[0]).is_file(), mutant.name
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", _IN_CI)
def test_a_mistake_is_noticed(name: str) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    assert caught(mutant)
