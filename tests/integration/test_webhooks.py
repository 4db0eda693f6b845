"""The outbox of webhooks and its senders: real databases, real threads, a real receiver."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, func, select

from jobs import feedback as applying
from jobs import lifecycle
from jobs.errors import DeliveryNotFound
from jobs.states import JobEvent
from jobs.store import feedback, jobs, models, webhooks
from jobs.store.database import Database
from jobs.store.jobs import NewJob
from jobs.store.tables import DEFAULT_PROJECT, webhook_attempts
from jobs.store.webhooks import Delivery, Webhook
from jobs.webhooks.sender import ATTEMPT_THREAD, Outcome, SenderLimits, WebhookSender
from jobs.webhooks.signing import key_of, new_secret
from models_cache.blobs import Blob
from models_cache.egress import Resolve, resolve_name
from models_cache.egress_policy import PUBLIC_ONLY, EgressPolicy, read_url
from service.services import new_id
from tests.receiver import Receiver, receiver
from tests.tenants import furnish
from tests.waiting import until

SECRET = new_secret()
LOOPBACK = EgressPolicy.of(["127.0.0.1"])
#: On the way of one message, in this order.
POINTS = (
    "webhook_claim.before_tx",
    "webhook_claim.in_tx",
    "webhook_claim.after_commit",
    "webhook.after_send",
    "webhook_note.before_tx",
    "webhook_note.in_tx",
    "webhook_note.after_commit",
)
FAST = SenderLimits(timeout_seconds=5.0, first_wait_seconds=0.001)


@pytest.fixture(autouse=True)
def nothing_is_left(database: Database) -> Iterator[None]:
    """Before the database is closed, what hung at the receiver, which has gone, is noted."""
    yield
    until(lambda: not [t for t in threading.enumerate() if t.name == ATTEMPT_THREAD], 20.0)


@pytest.fixture
def hook(nothing_is_left: None) -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@contextmanager
def sending(
    database: Database,
    policy: EgressPolicy = LOOPBACK,
    limits: SenderLimits = FAST,
    resolve: Resolve = resolve_name,
) -> Iterator[None]:
    sender = WebhookSender(database, policy, limits, resolve)
    sender.start()
    try:
        yield
    finally:
        sender.stop()


def end_job(
    database: Database,
    job_id: str,
    url: str,
    event: JobEvent = JobEvent.CANCEL,
    project: str = DEFAULT_PROJECT,
) -> None:
    """Have a job end for which someone is to be told."""
    with database.write() as connection:
        end_within(connection, job_id, url, event, project)


def end_within(
    connection: Connection,
    job_id: str,
    url: str,
    event: JobEvent = JobEvent.CANCEL,
    project: str = DEFAULT_PROJECT,
) -> None:
    spec = {"metadata": {"ticket": "7"}}
    new = NewJob(id=job_id, type="fine_tune", spec=spec, model="m", project=project)
    job = jobs.accept(connection, new)
    row = Webhook(job_id, job.project, url, SECRET, read_url(url).origin)
    webhooks.register(connection, row)
    changes = {"error": {"code": "diverged", "facts": {}, "message": "so"}}
    lifecycle.move(connection, job, event, changes=changes if event is JobEvent.FAIL else None)


def the_delivery(database: Database, job_id: str) -> Delivery:
    with database.read() as connection:
        (found,) = webhooks.of_job(connection, job_id)
    return found


def ended(database: Database, job_id: str) -> Delivery:
    """Return a job's message once it is pending no more."""

    def look() -> Delivery | None:
        delivery = the_delivery(database, job_id)
        return None if delivery.status == "pending" else delivery

    return until(look, 20.0)


@pytest.mark.parametrize(
    ("event", "word"), [(JobEvent.CANCEL, "cancelled"), (JobEvent.FAIL, "failed")]
)
def test_message_is_signed_and_says_what_became_of_the_job(
    event: JobEvent, word: str, database: Database, hook: Receiver
) -> None:
    end_job(database, "job_1", hook.url("/a?b=c"), event)
    with sending(database):
        delivery = ended(database, "job_1")
    assert (delivery.status, delivery.event) == ("delivered", f"job.{word}")
    assert [(a.number, a.response_status, a.error) for a in delivery.attempts] == [(1, 204, None)]
    (request,) = hook.received
    assert (request.path, request.id) == ("/a?b=c", delivery.id)
    message = request.verified(SECRET)
    assert message["type"] == f"job.{word}"
    assert (message["data"]["id"], message["data"]["metadata"]) == ("job_1", {"ticket": "7"})
    told = {"code": "diverged", "detail": "so"} if word == "failed" else None
    assert message["data"]["error"] == told
    with pytest.raises(Exception, match="signature"):
        request.verified(new_secret())


def test_nothing_is_told_of_a_transition_that_is_rolled_back(
    database: Database, hook: Receiver
) -> None:
    with suppress(RuntimeError), database.write() as connection:
        end_within(connection, "job_0", hook.url())
        raise RuntimeError
    end_job(database, "job_1", hook.url())
    with sending(database):
        ended(database, "job_1")
    assert len(hook.received) == 1


def test_failures_are_tried_again_with_the_same_id_and_a_new_time(
    database: Database, hook: Receiver
) -> None:
    hook.plan.statuses = [500, 302, 404, 200]
    hook.plan.headers = {"Location": f"http://127.0.0.1:{hook.port}/elsewhere"}
    end_job(database, "job_1", hook.url())
    with sending(database):
        delivery = ended(database, "job_1")
    assert delivery.status == "delivered"
    assert [a.response_status for a in delivery.attempts] == [500, 302, 404, 200]
    assert [a.error for a in delivery.attempts] == ["http-status"] * 3 + [None]
    assert {(each.id, each.path, each.body) for each in hook.received} == {
        (delivery.id, "/hook", hook.received[0].body)
    }
    for each in hook.received:
        each.verified(SECRET)


def test_tries_end_and_redelivery_gives_all_of_them_again(
    database: Database, hook: Receiver
) -> None:
    hook.plan.statuses = [500] * (webhooks.MOST_TRIES + 1)
    end_job(database, "job_1", hook.url())
    limits = SenderLimits(timeout_seconds=5.0, first_wait_seconds=1e-7)
    with sending(database, limits=limits):
        delivery = ended(database, "job_1")
        assert (delivery.status, len(delivery.attempts)) == ("failed", webhooks.MOST_TRIES)
        with database.write() as connection:
            again = webhooks.redeliver(connection, "job_1", delivery.id)
            assert (again.status, again.finished_at) == ("pending", None)
            with pytest.raises(DeliveryNotFound):
                webhooks.redeliver(connection, "job_2", delivery.id)
        done = ended(database, "job_1")
    assert (done.status, len(done.attempts)) == ("delivered", webhooks.MOST_TRIES + 2)
    assert {each.id for each in hook.received} == {delivery.id}


def test_a_receiver_that_is_gone_is_left_in_peace(database: Database, hook: Receiver) -> None:
    hook.plan.statuses = [410]
    end_job(database, "job_1", hook.url())
    with sending(database):
        delivery = ended(database, "job_1")
    assert (delivery.status, delivery.attempts[0].error) == ("gone", "gone")
    assert len(hook.received) == 1


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]])
def test_a_name_that_only_resolves_to_a_private_address_is_a_recorded_failure(
    addresses: list[str], database: Database, hook: Receiver
) -> None:
    end_job(database, "job_1", "http://hooks.test:8080/secret-path")
    found = [ip_address(text) for text in addresses]
    with sending(database, PUBLIC_ONLY, resolve=lambda _host, _port: found):
        delivery = ended(database, "job_1")
    assert delivery.status == "blocked"
    told = [(a.response_status, a.error) for a in delivery.attempts]
    assert told == [(None, "forbidden-address")]
    assert hook.received == []


def test_a_receiver_that_hangs_delays_no_other_and_is_asked_one_at_a_time(
    database: Database, hook: Receiver
) -> None:
    hook.plan.hanging = {"/hang"}
    with receiver() as other:
        for number in range(10):  # more than are sent at once
            end_job(database, f"job_h{number}", hook.url("/hang"))
        end_job(database, "job_other", other.url())
        with sending(database):
            assert ended(database, "job_other").status == "delivered"
            assert len(hook.received) == 1
            assert the_delivery(database, "job_h0").attempts[0].error == webhooks.UNKNOWN


def test_a_project_whose_receivers_all_hang_delays_no_other(
    database: Database, hook: Receiver
) -> None:
    hook.plan.hanging = {"/hang"}
    port = urlsplit(hook.url()).port
    with receiver() as other:
        for number in range(10):
            url = f"http://r{number}.test:{port}/hang"
            end_job(database, f"job_h{number}", url, project="loud")
        end_job(database, "job_other", other.url(), project="quiet")
        here = [ip_address("127.0.0.1")]
        with sending(database, resolve=lambda _host, _port: here):
            assert ended(database, "job_other").status == "delivered"
            taken = [the_delivery(database, f"job_h{number}").attempts for number in range(10)]
            assert len([attempts for attempts in taken if attempts]) == FAST.at_once_of_a_project


def test_several_senders_send_each_message_once_in_the_order_of_the_ends(
    database: Database, hook: Receiver
) -> None:
    names = [f"job_{number:02}" for number in range(20)]
    for name in names:
        end_job(database, name, hook.url())
    with sending(database), sending(database), sending(database):
        for name in names:
            assert ended(database, name).status == "delivered"
    seen = [each.verified(SECRET)["data"]["id"] for each in hook.received]
    assert (seen, hook.most_at_once) == (names, 1)


def test_an_attempt_whose_sender_vanished_is_made_again_after_its_lease(
    database: Database, hook: Receiver
) -> None:
    end_job(database, "job_1", hook.url())
    with database.write() as connection:
        lost = webhooks.claim(connection, timedelta(seconds=0.3), 4)
        assert lost is not None
        assert webhooks.claim(connection, timedelta(seconds=60), 4) is None
    with sending(database):
        delivery = ended(database, "job_1")
    assert [a.error for a in delivery.attempts] == [webhooks.UNKNOWN, None]
    with database.write() as connection:  # the first sender was only slow, and comes back
        webhooks.conclude(connection, lost, "failed", (500, "http-status"), timedelta(0))
    after = the_delivery(database, "job_1")
    assert (after.status, after.attempts[0].response_status) == ("delivered", 500)


def test_a_message_that_takes_its_sender_down_each_time_ends(
    database: Database, hook: Receiver
) -> None:
    end_job(database, "job_1", hook.url())
    for _ in range(webhooks.MOST_TRIES):
        with database.write() as connection:
            assert webhooks.claim(connection, timedelta(0), 4) is not None
    with sending(database):
        assert ended(database, "job_1").status == "failed"
    assert hook.received == []


def test_a_sender_killed_at_every_point_delivers_at_least_once_under_one_id(
    database: Database, database_url: str, hook: Receiver, tmp_path: Path
) -> None:
    end_job(database, "job_1", hook.url())
    once = tmp_path / "faults"
    plan = ",".join(f"{point}=kill" for point in POINTS)
    program = [sys.executable, "-m", "tests.integration.webhook_sender", str(len(POINTS))]
    senders = subprocess.run(
        [*program, database_url, plan, str(once)], timeout=150, check=True, capture_output=True
    )
    assert senders.stdout.split() == [b"%d" % -signal.SIGKILL] * len(POINTS)
    assert {path.name for path in once.iterdir()} == set(POINTS)
    delivery = the_delivery(database, "job_1")
    assert delivery.status == "delivered"
    unknown = [webhooks.UNKNOWN] * 4  # the outcome of each is lost; three of them were received
    assert [a.error for a in delivery.attempts] == [*unknown, None]
    assert [each.id for each in hook.received] == [delivery.id] * 4
    assert len({each.body for each in hook.received}) == 1


def test_receivers_that_ask_for_patience_get_it(database: Database, hook: Receiver) -> None:
    hook.plan.statuses, hook.plan.headers = [429], {"Retry-After": "100"}
    end_job(database, "job_1", hook.url())
    with sending(database):
        until(lambda: the_delivery(database, "job_1").attempts[-1:], 10.0)
        until(lambda: the_delivery(database, "job_1").attempts[0].response_status, 10.0)
    delivery = the_delivery(database, "job_1")
    assert delivery.status == "pending"
    assert timedelta(seconds=90) < delivery.next_at - delivery.created_at < timedelta(seconds=130)


def test_ended_messages_are_forgotten_with_their_attempts_and_pending_ones_kept(
    database: Database, hook: Receiver
) -> None:
    end_job(database, "job_1", hook.url())
    with sending(database):
        ended(database, "job_1")
    end_job(database, "job_2", hook.url())
    with database.write() as connection:
        assert webhooks.forget(connection, timedelta(hours=1)) == 0
        assert webhooks.forget(connection, timedelta(0)) == 1
        assert webhooks.of_job(connection, "job_1") == []
        assert connection.scalar(select(func.count()).select_from(webhook_attempts)) == 0
        assert webhooks.count_by_status(connection)["pending"] == 1
        jobs.remove(connection, "job_2", DEFAULT_PROJECT)
        assert webhooks.of_job(connection, "job_2") == []


def test_waits_grow_to_a_day_and_differ() -> None:
    sender = WebhookSender(None, LOOPBACK, SenderLimits())  # type: ignore[arg-type]  # not used
    waits = [
        [
            sender._wait_seconds(
                webhooks.Claim("", "", 1, webhooks.MOST_TRIES - done, "", "", "", ""),
                Outcome("pending"),
            )
            for _ in range(20)
        ]
        for done in range(1, webhooks.MOST_TRIES)
    ]
    for index, some in enumerate(waits):
        middle = min(5.0 * 4**index, 86_400.0)
        assert all(0.8 * middle <= each <= 1.2 * middle for each in some)
        assert len(set(some)) > 10
    assert 2 * 86_400 < sum(min(5.0 * 4**i, 86_400.0) for i in range(9)) < 2.5 * 86_400


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!!!!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", f"whsec_{'A' * 24}"]
)
def test_what_is_no_secret_signs_nothing(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        key_of(secret)


def test_stopping_does_not_wait_for_a_receiver_that_hangs(
    database: Database, hook: Receiver
) -> None:
    hook.plan.hanging = {"/hang"}
    end_job(database, "job_1", hook.url("/hang"))
    limits = SenderLimits(timeout_seconds=60.0, first_wait_seconds=0.001)
    with sending(database, limits=limits):
        until(lambda: hook.received, 10.0)
    assert hook.at_once == 1  # it still hangs, and the sender has stopped
    assert not [t for t in threading.enumerate() if t.name == "webhooks"]


def test_a_training_that_feedback_asks_for_is_told_to_the_same_receiver(
    database: Database, tmp_path: Path
) -> None:
    training = new_id("job")
    with database.write() as connection:
        things = furnish(connection, tmp_path, DEFAULT_PROJECT, "ants")
        version = models.resolve(connection, "ants", None, DEFAULT_PROJECT)
        items = feedback.pending(connection, "ants", DEFAULT_PROJECT)
        ids = (new_id("ds"), new_id("job"), training)
        applying.accept(connection, version, items, Blob("0" * 64, 1), ids)
        before = webhooks.find(connection, things.job)
        assert before is not None
        assert webhooks.find(connection, training) == replace(before, job_id=training)
