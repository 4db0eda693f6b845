"""The table of job states."""

from __future__ import annotations

from itertools import product

import pytest

from jobs.errors import IllegalTransition
from jobs.states import TERMINAL, TRANSITIONS, JobEvent, JobState, next_state


def test_terminal_states_have_no_exit() -> None:
    assert not [state for state, _ in TRANSITIONS if state in TERMINAL]


def test_every_state_can_be_reached_from_queued() -> None:
    reached = {JobState.QUEUED}
    while True:
        more = {after for (before, _), after in TRANSITIONS.items() if before in reached}
        if more <= reached:
            break
        reached |= more
    assert reached == set(JobState)


def test_every_state_that_is_not_terminal_can_end() -> None:
    ending = set(TERMINAL)
    while True:
        more = {before for (before, _), after in TRANSITIONS.items() if after in ending}
        if more <= ending:
            break
        ending |= more
    assert ending == set(JobState)


@pytest.mark.parametrize(
    ("state", "event"),
    [pair for pair in product(JobState, JobEvent) if pair not in TRANSITIONS],
)
def test_what_the_table_does_not_list_is_refused(state: JobState, event: JobEvent) -> None:
    with pytest.raises(IllegalTransition):
        next_state("job_1", state, event)
