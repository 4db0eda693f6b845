"""Statements: claims, leases, fencing, aliases, keys, migrations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import update

from jobs.errors import (
    AliasConflict,
    AliasReserved,
    IdempotencyMismatch,
    IllegalTransition,
    JobNotEnded,
    JobNotFound,
    LeaseLost,
    ModelNotFound,
    VersionInUse,
    VersionNotFound,
)
from jobs.states import JobEvent, JobState
from jobs.store import datasets, events, idempotency, jobs, leases, models, tables, workers
from jobs.store.database import Database, utc_now
from jobs.store.jobs import Job, Lease, NewJob
from jobs.store.lease_clock import lease_now
from jobs.store.models import NewVersion
from jobs.store.tables import DEFAULT_PROJECT, metadata

LONG = timedelta(seconds=60)


def accept(database: Database, job_id: str, **fields: object) -> Job:
    with database.write() as connection:
        return jobs.accept(
            connection,
            NewJob(
                id=job_id,
                type="fine_tune",
                spec={},
                project=DEFAULT_PROJECT,
                **fields,  # type: ignore[arg-type]
            ),
        )


def claim(database: Database, token: str, lease: timedelta = LONG) -> Job | None:
    with database.write() as connection:
        return leases.claim(connection, ("fine_tune",), f"worker-{token}", token, lease)


def new_version(digest: str, job_id: str | None = None, name: str = "m") -> NewVersion:
    return NewVersion(
        name=name,
        artifact_digest=digest,
        files={},
        task="classification",
        architecture="resnet18",
        classes=["a", "b"],
        metrics={},
        job_id=job_id,
        project=DEFAULT_PROJECT,
    )


def test_migrations_build_the_tables_that_the_code_uses(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_from_many_threads_at_once_happens_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, databases))
    assert all(database.is_migrated() for database in databases)
    for database in databases:
        database.close()


def test_more_urgent_job_is_claimed_first_then_the_older(database: Database) -> None:
    for job_id, priority in (("job_a", 0), ("job_b", 5), ("job_c", 5)):
        accept(database, job_id, priority=priority)
    order = [claim(database, str(turn)) for turn in range(4)]
    assert [job and job.id for job in order] == ["job_b", "job_c", "job_a", None]


def test_concurrent_claims_never_give_one_job_twice(database: Database) -> None:
    for number in range(40):
        accept(database, f"job_{number}")

    def claim_some(worker: int) -> list[str]:
        mine: list[str] = []
        while (job := claim(database, f"{worker}-{len(mine)}")) is not None:
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(4) as pool:
        claimed = [job_id for mine in pool.map(claim_some, range(4)) for job_id in mine]
    assert sorted(claimed) == sorted(f"job_{number}" for number in range(40))


def test_job_waits_until_its_dataset_is_checked(database: Database) -> None:
    with database.write() as connection:
        datasets.add(connection, "ds_1", "d", ("0" * 64, 1), project=DEFAULT_PROJECT)
    accept(database, "job_a", dataset_id="ds_1")
    assert claim(database, "t") is None
    with database.write() as connection:
        datasets.set_ready(connection, "ds_1", {"digest": "1" * 64})
    assert claim(database, "t") is not None


def test_every_write_of_a_worker_that_lost_its_lease_is_refused(database: Database) -> None:
    accept(database, "job_a")
    claim(database, "old")
    with database.write() as connection:
        jobs.transition(connection, "job_a", JobEvent.LOSE, project=DEFAULT_PROJECT)
    claim(database, "new")
    zombie = Lease("job_a", "old")
    with database.write() as connection, pytest.raises(LeaseLost):
        leases.renew(connection, zombie, LONG)
    with database.write() as connection, pytest.raises(LeaseLost):
        leases.record(connection, zombie, {"phase": "train"}, [("log", {})])
    for event in (JobEvent.SUCCEED, JobEvent.FAIL, JobEvent.LOSE, JobEvent.STOP):
        with database.write() as connection, pytest.raises(LeaseLost):
            jobs.transition(connection, "job_a", event, lease=zombie, project=DEFAULT_PROJECT)
    with database.read() as connection:
        assert jobs.get(connection, "job_a", DEFAULT_PROJECT).status is JobState.RUNNING
        with pytest.raises(LeaseLost):
            leases.status_of_held(connection, zombie)


def test_lease_that_is_over_is_found(database: Database) -> None:
    accept(database, "job_a")
    claim(database, "t", timedelta(seconds=-1))
    with database.read() as connection:
        assert [job.id for job in leases.with_lease_over(connection, LONG)] == ["job_a"]


def test_lease_and_sign_of_life_of_another_boot_are_over(database: Database) -> None:
    """After a restart of the host its clock begins again: old times then lie far ahead."""
    accept(database, "job_a")
    claim(database, "t", timedelta(days=30))
    with database.write() as connection:
        workers.register(connection, "worker-old", "h", 1, "cpu")
        ahead = lease_now(connection) + timedelta(days=30)
        connection.execute(update(tables.workers).values(heartbeat_at=ahead))
    with database.read() as connection:
        assert [job.id for job in leases.with_lease_over(connection, LONG)] == ["job_a"]
        assert workers.silent_for(connection, LONG) == ["worker-old"]
        assert workers.count_alive(connection, LONG) == 0


def test_job_that_was_put_off_before_the_clock_was_set_back_does_not_wait(
    database: Database,
) -> None:
    for job_id, hours in (("job_a", 5), ("job_b", 1 / 60)):
        accept(database, job_id, not_before=utc_now() + timedelta(hours=hours))
    claimed = claim(database, "t")
    assert claimed is not None
    assert claimed.id == "job_a"
    assert claim(database, "u") is None


def test_ended_job_moves_no_more_and_open_job_cannot_be_deleted(database: Database) -> None:
    accept(database, "job_a")
    with database.write() as connection, pytest.raises(JobNotEnded):
        jobs.remove(connection, "job_a", DEFAULT_PROJECT)
    with database.write() as connection:
        jobs.transition(connection, "job_a", JobEvent.CANCEL, project=DEFAULT_PROJECT)
    with database.write() as connection, pytest.raises(IllegalTransition):
        jobs.transition(connection, "job_a", JobEvent.RESUME, project=DEFAULT_PROJECT)
    with database.write() as connection:
        jobs.remove(connection, "job_a", DEFAULT_PROJECT)
    with database.read() as connection, pytest.raises(JobNotFound):
        jobs.get(connection, "job_a", DEFAULT_PROJECT)


def test_event_log_has_no_gaps_and_pages(database: Database) -> None:
    accept(database, "job_a")
    with database.write() as connection:
        events.append(connection, "job_a", [("log", {"n": n}) for n in range(5)])
        events.append(connection, "job_a", [("log", {"n": 5})])
    with database.read() as connection:
        assert [e.seq for e in events.page(connection, "job_a", 0, 100)] == list(range(1, 8))
        assert [e.seq for e in events.page(connection, "job_a", 3, 2)] == [4, 5]
        newest = events.page_backwards(connection, "job_a", None, 3)
        assert [e.seq for e in newest] == [7, 6, 5]
        older = events.page_backwards(connection, "job_a", newest[-1].seq, 100)
        assert [e.seq for e in older] == [4, 3, 2, 1]
        last = events.newest_of_kind(connection, "job_a", "log", utc_now())
        assert last is not None
        assert last.data == {"n": 5}
        assert events.newest_of_kind(connection, "job_a", "checkpoint", utc_now()) is None
        assert events.newest_of_kind(connection, "job_a", "log", newest[0].at - LONG) is None


def test_failed_transaction_leaves_nothing(database: Database) -> None:
    def accept_and_break() -> None:
        with database.write() as connection:
            jobs.accept(
                connection, NewJob(id="job_a", type="fine_tune", spec={}, project=DEFAULT_PROJECT)
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        accept_and_break()
    with database.read() as connection, pytest.raises(JobNotFound):
        jobs.get(connection, "job_a", DEFAULT_PROJECT)


def test_versions_count_up_for_ever_and_default_follows_promotion(database: Database) -> None:
    with database.write() as connection:
        assert models.publish(connection, new_version("a" * 64), promote=False).version == 1
        assert models.publish(connection, new_version("b" * 64), promote=False).version == 2
        assert models.aliases_of(connection, "m", DEFAULT_PROJECT) == {"default": 1}
        assert models.publish(connection, new_version("c" * 64), promote=True).version == 3
        assert models.resolve(connection, "m", None, DEFAULT_PROJECT).version == 3
        assert models.resolve(connection, "m", "2", DEFAULT_PROJECT).version == 2
        assert models.resolve(connection, "m", "latest", DEFAULT_PROJECT).version == 3
        with pytest.raises(VersionInUse):
            models.remove_version(connection, "m", 3, DEFAULT_PROJECT)
        models.set_alias(connection, "m", "default", 1, project=DEFAULT_PROJECT)
        models.remove_version(connection, "m", 3, DEFAULT_PROJECT)
        assert models.resolve(connection, "m", "latest", DEFAULT_PROJECT).version == 2
        models.remove(connection, "m", DEFAULT_PROJECT)
        with pytest.raises(ModelNotFound):
            models.get(connection, "m", DEFAULT_PROJECT)
        assert models.publish(connection, new_version("d" * 64), promote=False).version == 4


def test_a_page_says_of_each_model_what_asking_for_it_says(database: Database) -> None:
    with database.write() as connection:
        for name in ("c", "a", "b"):
            for number in range(3):
                new = new_version(f"{number:064d}", name=name)
                models.publish(connection, new, promote=number < 2)
        models.set_alias(connection, "b", "canary", 3, project=DEFAULT_PROJECT)
        models.remove(connection, "c", DEFAULT_PROJECT)
        models.publish(connection, new_version("7" * 64, name="c"), promote=True)
    with database.read() as connection:
        page = models.page(connection, 2, None, DEFAULT_PROJECT)
        assert page == [models.get(connection, name, DEFAULT_PROJECT) for name in ("a", "b")]
        assert models.page(connection, 2, "b", DEFAULT_PROJECT) == [
            models.get(connection, "c", DEFAULT_PROJECT)
        ]
        assert models.page(connection, 2, "c", DEFAULT_PROJECT) == []
        served = models.defaults(connection, ["a", "b", "c", "nothing"], DEFAULT_PROJECT)
        assert served == {
            name: models.resolve(connection, name, None, DEFAULT_PROJECT) for name in "abc"
        }
        assert [served[name].version for name in "abc"] == [2, 2, 4]


def test_alias_moves_only_from_where_it_was_expected(database: Database) -> None:
    with database.write() as connection:
        for digest in "ab":
            models.publish(connection, new_version(digest * 64), promote=False)
        models.set_alias(connection, "m", "canary", 1, project=DEFAULT_PROJECT)
        with pytest.raises(AliasConflict):
            models.set_alias(connection, "m", "canary", 2, if_current=2, project=DEFAULT_PROJECT)
        models.set_alias(connection, "m", "canary", 2, if_current=1, project=DEFAULT_PROJECT)
        assert models.resolve(connection, "m", "canary", DEFAULT_PROJECT).version == 2
        with pytest.raises(AliasReserved):
            models.set_alias(connection, "m", "latest", 1, project=DEFAULT_PROJECT)
        with pytest.raises(VersionNotFound):
            models.set_alias(connection, "m", "canary", 9, project=DEFAULT_PROJECT)
        with pytest.raises(VersionNotFound):
            models.resolve(connection, "m", "nowhere", DEFAULT_PROJECT)


def test_page_of_models_says_of_each_what_it_says_alone(database: Database) -> None:
    with database.write() as connection:
        for name, versions in (("a", 3), ("b", 1), ("c", 2), ("gone", 1)):
            for number in range(versions):
                new = new_version(str(number) * 64, name=name)
                models.publish(connection, new, promote=number == 1)
        models.set_alias(connection, "a", "canary", 3, project=DEFAULT_PROJECT)
        models.remove(connection, "gone", DEFAULT_PROJECT)
    with database.read() as connection:
        page = models.page(connection, 10, None, DEFAULT_PROJECT)
        assert page == [models.get(connection, name, DEFAULT_PROJECT) for name in "abc"]
        assert [model.name for model in models.page(connection, 1, "a", DEFAULT_PROJECT)] == ["b"]
        served = models.defaults(connection, ["a", "b", "gone", "never"], DEFAULT_PROJECT)
        assert served == {
            name: models.resolve(connection, name, None, DEFAULT_PROJECT) for name in "ab"
        }
    assert (page[0].versions, page[0].aliases) == ([1, 2, 3], {"canary": 3, "default": 2})


def test_key_remembers_what_it_made_and_refuses_another_request(database: Database) -> None:
    with database.write() as connection:
        assert idempotency.find(connection, "k", "f1", DEFAULT_PROJECT) is None
        idempotency.remember(connection, "k", "f1", "job_1", DEFAULT_PROJECT)
        assert idempotency.find(connection, "k", "f1", DEFAULT_PROJECT) == "job_1"
        with pytest.raises(IdempotencyMismatch):
            idempotency.find(connection, "k", "f2", DEFAULT_PROJECT)


def test_keys_are_forgotten_after_their_time_and_may_be_used_again(database: Database) -> None:
    with database.write() as connection:
        idempotency.remember(connection, "k", "f1", "job_1", DEFAULT_PROJECT)
        assert idempotency.forget(connection, timedelta(hours=1)) == 0
        assert idempotency.find(connection, "k", "f1", DEFAULT_PROJECT) == "job_1"
        assert idempotency.forget(connection, timedelta(seconds=-1)) == 1
        assert idempotency.once(connection, "k", "f2", lambda: "job_2", DEFAULT_PROJECT) == "job_2"


def test_one_key_sent_many_times_at_once_makes_one_thing(database: Database) -> None:
    def send(number: int) -> str:
        with database.write() as connection:
            return idempotency.once(connection, "k", "f", lambda: f"job_{number}", DEFAULT_PROJECT)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(16)))) == 1


def test_first_publications_of_one_name_at_once_count_up(database: Database) -> None:
    def publish(number: int) -> int:
        with database.write() as connection:
            new = new_version(f"{number:064d}")
            return models.publish(connection, new, promote=True).version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(publish, range(16))) == list(range(1, 17))


def test_pause_and_success_at_once_end_in_one_of_them(database: Database) -> None:
    for number in range(10):
        job_id = f"job_{number}"
        accept(database, job_id)
        assert claim(database, f"t{number}") is not None

        def move(event: JobEvent, job_id: str = job_id) -> bool:
            try:
                with database.write() as connection:
                    jobs.transition(connection, job_id, event, project=DEFAULT_PROJECT)
            except IllegalTransition:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(move, (JobEvent.SUCCEED, JobEvent.PAUSE)))
        assert done[0]  # a success is possible before and after a pause was asked for
        with database.read() as connection:
            assert jobs.get(connection, job_id, DEFAULT_PROJECT).status is JobState.SUCCEEDED
