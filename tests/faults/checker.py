"""Judges a history against what is on disk afterwards: nothing lost, doubled, stuck or torn.

Pure: broken histories are tested as such (`test_checker.py`). Only a system that was drained, in
which nothing moves any more, can be judged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jobs.states import HELD, TERMINAL, TRANSITIONS
from tests.faults.final_state import FinalJob, FinalState
from tests.faults.history import Operation

#: Moves of the log of a job: from a state to one that an event leads to.
_ALLOWED = {(before.value, after.value) for (before, _), after in TRANSITIONS.items()}
_AT_REST = {state.value for state in TERMINAL} | {"paused"}
_SUBMITTED = frozenset({"fine_tune", "race", "evaluate", "batch_predict"})
_RUNNING, _QUEUED = "running", "queued"
#: Operations whose acknowledgement names something that must be there, and what takes it away.
_MAKING = {"upload": "dataset_delete", "submit": "job_delete", "retry": "job_delete"}
_WISHED_END = {"cancel": {"cancelled", "succeeded", "failed"}}


@dataclass(frozen=True)
class Violation:
    """One broken promise: `lost`, `doubled`, `stuck`, `path`, `fencing`, `torn` or `leaked`."""

    kind: str
    what: str


def violations(
    history: Sequence[Operation],
    final: FinalState,
    *,
    swept: bool = True,
    unworked: bool = False,
) -> list[Violation]:
    """Return every broken promise.

    Args:
        history: What clients asked for and were told.
        final: What is on disk, after the system came to rest and ended.
        swept: Temporary files of killed writers have been swept, so that none may be left.
        unworked: No worker ran, so that what waits for one is at rest.
    """
    found = [
        *_lost(history, final),
        *_doubled(history, final),
        *_jobs(final),
        *(() if unworked else _stuck(final)),
        *_published(final),
        *(Violation("leaked", f"process {process}") for process in final.processes),
    ]
    if swept:
        found += [Violation("leaked", f"file {name}") for name in final.temporary_files]
    if not final.database_is_sound:
        found.append(Violation("torn", "the database"))
    return found


def _lost(history: Sequence[Operation], final: FinalState) -> Iterator[Violation]:
    """What was acknowledged and is not there; an operation that is still open judges nothing."""
    there = {*final.jobs, *final.datasets}
    removed = {op.resource for op in history if op.name.endswith("_delete")}  # asked for suffices
    for op in history:
        if op.phase != "ok":
            continue
        if op.name in _MAKING and op.resource not in there and op.resource not in removed:
            yield Violation("lost", f"{op.name} {op.key}: {op.resource}")
        if op.name.endswith("_delete") and op.resource in there:
            yield Violation("lost", f"{op.resource} was deleted and is there")
        wished = _WISHED_END.get(op.name)
        job = final.jobs.get(op.resource or "")
        if wished is not None and job is not None and job.status not in wished:
            yield Violation("lost", f"{op.name} of {op.resource}, which is {job.status}")


def _doubled(history: Sequence[Operation], final: FinalState) -> Iterator[Violation]:
    """One key made two things, or things exist that no operation can have made."""
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    for op in history:
        if op.phase == "ok" and op.name in _MAKING and op.resource is not None:
            made[op.name, op.key].add(op.resource)
    for (name, key), resources in made.items():
        if len(resources) > 1:
            yield Violation("doubled", f"{name} {key} made {sorted(resources)}")
    yield from _doubled_versions(final)
    wishes = {(op.name, op.key) for op in history if op.name in ("submit", "retry")}
    asked = len(wishes)
    public = [job for job in final.jobs.values() if job.type in _SUBMITTED]
    if history and len(public) > asked:
        yield Violation("doubled", f"{len(public)} jobs of {asked} that were asked for")


def _doubled_versions(final: FinalState) -> Iterator[Violation]:
    versions = Counter(v.job_id for v in final.versions if v.job_id is not None)
    for job_id, count in versions.items():
        if count > _most_versions(final.jobs.get(job_id)):
            yield Violation("doubled", f"{count} versions of {job_id}")
    numbers = Counter((v.model, v.version) for v in final.versions)
    for reference, count in numbers.items():
        if count > 1:
            yield Violation("doubled", f"version {reference}")


def _most_versions(job: FinalJob | None) -> int:
    """`auto` says how many candidates it published; others publish once."""
    result = {} if job is None or job.result is None else job.result
    return len(result.get("candidates", [None]))


def _jobs(final: FinalState) -> Iterator[Violation]:
    tokens = [job.lease_token for job in final.jobs.values() if job.lease_token is not None]
    if len(set(tokens)) != len(tokens):
        yield Violation("fencing", "two jobs are held with one token")
    for job in final.jobs.values():
        yield from _path(job)
        if job.lease_token is not None and job.status not in {s.value for s in HELD}:
            yield Violation("leaked", f"the lease of {job.id}, which is {job.status}")


def _stuck(final: FinalState) -> Iterator[Violation]:
    for job in final.jobs.values():
        if job.status not in _AT_REST:
            yield Violation("stuck", f"{job.id} is {job.status}")
    for dataset_id, status in final.datasets.items():
        if status not in ("ready", "rejected"):
            yield Violation("stuck", f"{dataset_id} is {status}")


def _path(job: FinalJob) -> Iterator[Violation]:
    """The log is a path of the table, without gaps; each claim begins the next attempt."""
    if list(job.sequence) != list(range(1, len(job.sequence) + 1)):
        yield Violation("path", f"the log of {job.id} has gaps or doubles")
    states = [status for status, _ in job.states]
    if not states or states[0] != _QUEUED:
        yield Violation("path", f"{job.id} does not begin queued")
    for before, after in pairwise(states):
        if (before, after) not in _ALLOWED:
            yield Violation("path", f"{job.id} went from {before} to {after}")
    if states and states[-1] != job.status:
        yield Violation("path", f"{job.id} is {job.status}, its log says {states[-1]}")
    attempts = [attempt for status, attempt in job.states if status == _RUNNING]
    if attempts != list(range(1, len(attempts) + 1)):
        yield Violation("fencing", f"{job.id} was claimed for attempts {attempts}")
    if attempts and job.attempt != attempts[-1]:
        yield Violation("fencing", f"{job.id} is at attempt {job.attempt}, claimed {attempts[-1]}")


def _published(final: FinalState) -> Iterator[Violation]:
    for version in final.versions:
        if version.problem is not None:
            yield Violation("torn", f"{version.model}@{version.version}: {version.problem}")
    for sha256 in final.missing_files:
        yield Violation("torn", f"the file {sha256} that a data set points to")
    published = {v.job_id for v in final.versions}
    for job in final.jobs.values():
        if job.status == "succeeded" and job.type == "fine_tune" and job.id not in published:
            yield Violation("lost", f"the version that {job.id} published")
