"""Seeded mistakes: each takes one guard out of the code, and a test must notice.

A proof that nothing is lost is worth as much as its power to notice that something is. The tree is
copied, one text is replaced (it must be there exactly once), and the named tests run in the copy:
they must fail, and pass without the change.

    python -m tests.faults.mutants [NAME ...]      # prints JSON: {"caught", "total", "missed"}
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults import soak
from tests.faults.call_sites import PACKAGES, REPOSITORY

_TIMEOUT_SECONDS = 240.0
_TESTS_FAILED = 1  # what pytest exits with then; anything else is no verdict


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        name: What is missing.
        path: The file that is changed.
        before: Text that is there exactly once.
        after: What takes its place.
        oracle: The tests that must notice: arguments of pytest.
    """

    name: str
    path: str
    before: str
    after: str
    oracle: tuple[str, ...]


_ORDER = "tests/faults/test_flush_order.py"
_API = "tests/faults/test_api_points.py"
_WORKER = "tests/integration/test_worker.py"
_STORE = ("tests/integration/test_store.py", "-k", "every_write_of_a_worker")

MUTANTS = (
    Mutant(
        "in-place-write",
        "models_cache/durable.py",
        'temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")',
        "temporary = path",
        (f"{_ORDER}::test_a_reader_finds_all_or_nothing_of_a_write_that_is_killed",),
    ),
    Mutant(
        "no-fsync-of-the-file",
        "models_cache/durable.py",
        "            os.fsync(f.fileno())\n",
        "",
        (f"{_ORDER}::test_files_are_durable_before_they_are_pointed_to",),
    ),
    Mutant(
        "no-fsync-of-the-folder",
        "models_cache/durable.py",
        '        faults.reach(f"{point}.after_rename")\n        fsync_folder(path.parent)\n',
        '        faults.reach(f"{point}.after_rename")\n',
        (f"{_ORDER}::test_files_are_durable_before_they_are_pointed_to",),
    ),
    Mutant(
        "no-fsync-of-an-upload",
        "models_cache/blobs.py",
        "            _flush(source)\n",
        "",
        (f"{_ORDER}::test_parts_of_an_upload_are_durable_when_they_are_acknowledged",),
    ),
    Mutant(
        "no-fsync-of-a-commit",
        "jobs/store/database.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=OFF",
        (f"{_ORDER}::test_a_commit_is_flushed",),
    ),
    Mutant(
        "no-fencing-at-publication",
        "jobs/store/jobs.py",
        "    if lease is not None and job.lease_token != lease.token:\n"
        "        raise LeaseLost(job_id)\n",
        "",
        _STORE,
    ),
    Mutant(
        "no-fencing-of-progress",
        "jobs/store/leases.py",
        "jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token, jobs.c.status.in_(HELD)",
        "jobs.c.id == lease.job_id, jobs.c.status.in_(HELD)",
        _STORE,
    ),
    Mutant(
        "acknowledged-before-the-commit",
        "service/routers/jobs.py",
        "        return lifecycle.move(connection, current, event)\n",
        """        pass
    import threading

    def later() -> None:
        with services.database.write(event.value) as connection:
            lifecycle.move(connection, current, event)

    threading.Timer(0.2, later).start()
    return current
""",
        (f"{_API}::test_what_is_acknowledged_is_committed",),
    ),
    Mutant(
        "idempotency-key-outside-of-the-transaction",
        "service/submission.py",
        "        job_id = idempotency.once("
        "connection, idempotency_key, fingerprint, insert, caller.project)\n"
        "        job = jobs.get(connection, job_id, caller.project)\n",
        """        key = idempotency_key or new_id("key")
        known = idempotency.find(connection, key, fingerprint, caller.project)
        job_id = known or insert()
    with services.database.write("key") as connection:
        if not known:
            idempotency.remember(connection, key, fingerprint, job_id, caller.project)
        job = jobs.get(connection, job_id, caller.project)
""",
        (f"{_API}::test_a_call_whose_answer_was_lost_is_not_done_again",),
    ),
    Mutant(
        "row-before-its-file-is-durable",
        "service/routers/datasets.py",
        """    archive = services.blobs.put_file(upload.path, upload.sha256)
    with services.database.write("upload") as connection:
""",
        """    archive = Blob(upload.sha256, upload.size_bytes)
    with services.database.write("early") as connection:
        idempotency.once(
            connection,
            idempotency_key,
            fingerprint,
            lambda: _insert(connection, target, archive),
            project,
        )
    archive = services.blobs.put_file(upload.path, upload.sha256)
    with services.database.write("upload") as connection:
""",
        (f"{_API}::test_a_row_never_points_to_a_file_that_is_not_there",),
    ),
    Mutant(
        "lease-not-renewed",
        "jobs/store/leases.py",
        "        .values(lease_until=lease_now(connection) + length)\n",
        "        .values(lease_until=jobs.c.lease_until)\n",
        ("tests/faults/test_worker_points.py::test_a_job_longer_than_its_lease_keeps_its_worker",),
    ),
    Mutant(
        "heartbeat-without-a-look-at-progress",
        "jobs/worker.py",
        "if silent_seconds > self._limits.stall_seconds and attempt.stall is None:",
        "if False:",
        (f"{_WORKER}::test_attempt_without_progress_is_restarted_as_stalled",),
    ),
    Mutant(
        "no-limit-of-attempts",
        "jobs/worker.py",
        "        if count >= self._limits.fault_limit:\n",
        "        if count >= 1_000_000:\n",
        (f"{_WORKER}::test_poison_job_stops_after_three_attempts_with_its_reason",),
    ),
    Mutant(
        "nobody-recovers-jobs",
        "jobs/presence.py",
        "        if not dead and not over:\n",
        "        if True:\n",
        (
            f"{_WORKER}::test_jobs_of_a_dead_worker_are_queued_at_once"
            "_and_of_a_living_one_left_alone",
        ),
    ),
    Mutant(
        "leases-by-the-wall-clock",
        "jobs/store/lease_clock.py",
        "datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME), UTC)",
        "datetime.now(UTC)",
        (
            "tests/faults/test_worker_points.py"
            "::test_a_wall_clock_that_jumps_ends_no_lease_and_keeps_no_job_waiting",
        ),
    ),
    Mutant(
        "no-ballast",
        "jobs/store/database.py",
        "            self._ballast.give_up_if_full()\n",
        "            pass\n",
        ("tests/faults/test_disk_full.py::test_sqlite_deletes_on_a_full_disk_only_with_ballast",),
    ),
    Mutant(
        "children-outlive-their-worker",
        "jobs/processes.py",
        "if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:",
        "if False:",
        ("tests/unit/test_processes.py::test_spawned_process_dies_when_its_parent_is_killed",),
    ),
)


def caught(mutant: Mutant) -> bool:
    """Tell whether the oracle fails with the mutant; it must pass without it."""
    with tempfile.TemporaryDirectory(prefix="graft-mutant-") as folder:
        tree = Path(folder)
        _copy(tree)
        assert _passes(tree, mutant.oracle), f"{mutant.name}: its oracle fails by itself"
        apply(mutant, tree)
        return not _passes(tree, mutant.oracle)


def apply(mutant: Mutant, tree: Path) -> None:
    """Change one text of a tree, which must be there exactly once."""
    path = tree / mutant.path
    text = path.read_text()
    count = text.count(mutant.before)
    assert count == 1, f"{mutant.name}: its text is {count} times in {mutant.path}"
    path.write_text(text.replace(mutant.before, mutant.after))


def _copy(tree: Path) -> None:
    for name in (*PACKAGES, "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tree)


def _passes(tree: Path, oracle: Sequence[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *oracle]
    ended = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "GRAFT_TEST_SOAK": "0"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.returncode in (0, _TESTS_FAILED), ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended.returncode == 0


def main(names: Sequence[str]) -> int:
    """Try the named mutants, or all, and print the figures; the status says whether all fell."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    missed = []
    for mutant in chosen:
        found = caught(mutant)
        sys.stderr.write(f"{mutant.name}: {'caught' if found else 'MISSED'}\n")
        if not found:
            missed.append(mutant.name)
    total = len(chosen)
    verdict = {"caught": total - len(missed), "total": total, "missed": missed}
    sys.stdout.write(json.dumps(verdict) + "\n")
    if not names:
        figure = f"{total - len(missed)} of {total}"
        soak.write_figure("mutants-caught", figure, f"{total} of {total}", ok=not missed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
