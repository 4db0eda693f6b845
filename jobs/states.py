"""The life of a job as one table: which event leads from which state to which.

Pure: the store asks `next_state` and writes with compare-and-set on the old state. Terminal
states have no exit; `retry` makes a new job.
"""

from __future__ import annotations

from enum import StrEnum

from jobs.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job is; the words of the HTTP contract's `status`."""

    #: Accepted and on disk; waits for a free slot (and for its dataset to be ready).
    QUEUED = "queued"
    #: A worker holds its lease and runs an attempt.
    RUNNING = "running"
    #: A pause was asked for; the attempt writes a checkpoint and ends.
    PAUSING = "pausing"
    #: Holds no slot; goes on from its checkpoint after `resume`.
    PAUSED = "paused"
    #: A cancel was asked for; the child is being stopped.
    CANCELLING = "cancelling"
    #: Its result is published.
    SUCCEEDED = "succeeded"
    #: It cannot give a result; `error` says why.
    FAILED = "failed"
    #: Stopped because someone asked; nothing was published but what `auto` had published before.
    CANCELLED = "cancelled"


class JobEvent(StrEnum):
    """What can happen to a job."""

    #: A worker takes it.
    CLAIM = "claim"
    #: Another worker takes over the running attempt: new lease token, same attempt.
    ADOPT = "adopt"
    #: The attempt's result was published.
    SUCCEED = "succeed"
    #: The attempt ended with an error, or there were too many attempts.
    FAIL = "fail"
    #: The attempt was lost with its worker, host or child; it is queued again.
    LOSE = "lose"
    #: Someone asked to cancel.
    CANCEL = "cancel"
    #: The child of a cancelled attempt is gone.
    STOP = "stop"
    #: Someone asked to pause.
    PAUSE = "pause"
    #: Someone asked to go on.
    RESUME = "resume"


S, E = JobState, JobEvent

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (S.QUEUED, E.CLAIM): S.RUNNING,
    (S.QUEUED, E.CANCEL): S.CANCELLED,
    (S.QUEUED, E.PAUSE): S.PAUSED,
    (S.QUEUED, E.FAIL): S.FAILED,  # its dataset was rejected
    (S.RUNNING, E.ADOPT): S.RUNNING,
    (S.RUNNING, E.SUCCEED): S.SUCCEEDED,
    (S.RUNNING, E.FAIL): S.FAILED,
    (S.RUNNING, E.LOSE): S.QUEUED,
    (S.RUNNING, E.CANCEL): S.CANCELLING,
    (S.RUNNING, E.PAUSE): S.PAUSING,
    (S.PAUSING, E.STOP): S.PAUSED,
    (S.PAUSING, E.LOSE): S.PAUSED,
    (S.PAUSING, E.SUCCEED): S.SUCCEEDED,  # it was done before it could stop
    (S.PAUSING, E.FAIL): S.FAILED,
    (S.PAUSING, E.CANCEL): S.CANCELLING,
    (S.PAUSED, E.RESUME): S.QUEUED,
    (S.PAUSED, E.CANCEL): S.CANCELLED,
    (S.PAUSED, E.FAIL): S.FAILED,  # its dataset was rejected
    (S.CANCELLING, E.STOP): S.CANCELLED,
    (S.CANCELLING, E.LOSE): S.CANCELLED,
    (S.CANCELLING, E.FAIL): S.CANCELLED,
    (S.CANCELLING, E.SUCCEED): S.SUCCEEDED,  # publication won the race
}

TERMINAL: frozenset[JobState] = frozenset({S.SUCCEEDED, S.FAILED, S.CANCELLED})
HELD: frozenset[JobState] = frozenset({S.RUNNING, S.PAUSING, S.CANCELLING})


def next_state(job_id: str, state: JobState, event: JobEvent) -> JobState:
    """Return the state after `event`.

    Raises:
        IllegalTransition: The table has no such row.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(job_id, state.value, event.value) from None
