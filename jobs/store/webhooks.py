"""Statements about webhooks: who is told, the outbox of messages, and the log of attempts.

A message is written in the transaction that ends its job. Senders take it with a lease, so that
two never send it at the same moment, and a sender that was killed is followed by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import uuid_utils.compat as uuids
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from jobs.errors import DeliveryNotFound
from jobs.store.database import utc_now
from jobs.store.tables import webhook_attempts, webhook_deliveries, webhooks

Status = Literal["pending", "delivered", "failed", "blocked", "gone"]
STATUSES: tuple[Status, ...] = ("pending", "delivered", "failed", "blocked", "gone")
#: Attempts of a message; with the waits between them they span two and a quarter days.
MOST_TRIES = 10

#: Of an attempt whose sender has not said how it ended: it may have been received.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Webhook:
    """Who is told about a job.

    Args:
        job_id: Which job.
        project: Whose job.
        url: Where the receiver is.
        secret: Signs messages; never shown again and never logged.
        receiver: Scheme, host and port of `url`.
    """

    job_id: str
    project: str
    url: str
    secret: str
    receiver: str


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver a message.

    Args:
        number: Counts from 1.
        at: When it began.
        response_status: HTTP status of the answer, if there was one.
        error: Why it failed, as a stable word; None if it did not.
    """

    number: int
    at: datetime
    response_status: int | None
    error: str | None


@dataclass(frozen=True)
class Delivery:
    """A message and how far it is.

    Args:
        id: Sent as `webhook-id`, the same at every attempt.
        event: Type of the message.
        status: `pending` until it ends.
        next_at: When it is tried next, while it is pending.
        created_at: When its job ended.
        finished_at: When it ended.
        attempts: Oldest first.
    """

    id: str
    event: str
    status: Status
    next_at: datetime
    created_at: datetime
    finished_at: datetime | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Claim:
    """A sender's right to one attempt.

    Args:
        delivery_id: Of the message.
        token: Of the lease.
        number: Of the attempt, over all rounds.
        tries_left: Of this round, behind this attempt.
        body: What is sent.
        url: Where to.
        secret: What signs it.
        receiver: Scheme, host and port of `url`.
    """

    delivery_id: str
    token: str
    number: int
    tries_left: int
    body: str
    url: str
    secret: str
    receiver: str


def register(connection: Connection, webhook: Webhook) -> None:
    """Note who is to be told, in the transaction that accepts the job."""
    values = {**vars(webhook), "created_at": utc_now()}
    connection.execute(insert(webhooks).values(**values))


def find(connection: Connection, job_id: str) -> Webhook | None:
    """Return who is told about a job, or None."""
    row = connection.execute(select(webhooks).where(webhooks.c.job_id == job_id)).one_or_none()
    if row is None:
        return None
    return Webhook(row.job_id, row.project, row.url, row.secret, row.receiver)


def hand_on(connection: Connection, job_id: str, to_job_id: str) -> None:
    """Have those who are told about a job told about the one that repeats it, too."""
    webhook = find(connection, job_id)
    if webhook is not None:
        register(connection, replace(webhook, job_id=to_job_id))


def put(connection: Connection, webhook: Webhook, event: str, body: str) -> None:
    """Put a message into the outbox, in the transaction of what it tells about."""
    now = utc_now()
    connection.execute(
        insert(webhook_deliveries).values(
            id=f"msg_{uuids.uuid7().hex}",
            project=webhook.project,
            job_id=webhook.job_id,
            receiver=webhook.receiver,
            event=event,
            body=body,
            status="pending",
            attempts=0,
            tries_left=MOST_TRIES,
            next_at=now,
            created_at=now,
        )
    )


def is_due(connection: Connection, most_of_a_project: int) -> bool:
    """Tell, without a lock, whether `claim` would find something."""
    return bool(connection.scalar(select(exists().where(_due(utc_now(), most_of_a_project)))))


def claim(connection: Connection, lease: timedelta, most_of_a_project: int) -> Claim | None:
    """Take the message that is due for longest; of a receiver one at a time.

    The attempt is counted and logged before it is made, so that one which kills its sender is
    counted too.

    Args:
        connection: In a writing transaction.
        lease: How long nobody else takes it.
        most_of_a_project: How many of one may be taken at the same time.
    """
    now, token = utc_now(), uuids.uuid4().hex
    row = connection.execute(
        select(webhook_deliveries, webhooks.c.url, webhooks.c.secret)
        .join(webhooks, webhooks.c.job_id == webhook_deliveries.c.job_id)
        .where(_due(now, most_of_a_project))
        .order_by(webhook_deliveries.c.next_at, webhook_deliveries.c.id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    this = webhook_deliveries.c.id == row.id
    if row.tries_left == 0:  # the last try took its sender down
        ended = {"status": "failed", "finished_at": now, "lease_token": None, "lease_until": None}
        connection.execute(update(webhook_deliveries).where(this).values(**ended))
        return None
    connection.execute(
        update(webhook_deliveries)
        .where(this)
        .values(
            attempts=row.attempts + 1,
            tries_left=row.tries_left - 1,
            lease_token=token,
            lease_until=now + lease,
        )
    )
    number = row.attempts + 1
    connection.execute(
        insert(webhook_attempts).values(
            delivery_id=row.id, number=number, project=row.project, at=now, error=UNKNOWN
        )
    )
    left = row.tries_left - 1
    return Claim(row.id, token, number, left, row.body, row.url, row.secret, row.receiver)


def conclude(
    connection: Connection,
    claimed: Claim,
    status: Status,
    response: tuple[int | None, str | None],
    wait: timedelta,
) -> None:
    """Write how an attempt ended, and free the message if its lease still holds.

    Args:
        connection: In a writing transaction.
        claimed: The attempt.
        status: What becomes of the message; `pending`: another attempt.
        response: HTTP status of the answer, and why the attempt failed.
        wait: Until that attempt.
    """
    now = utc_now()
    connection.execute(
        update(webhook_attempts)
        .where(
            webhook_attempts.c.delivery_id == claimed.delivery_id,
            webhook_attempts.c.number == claimed.number,
        )
        .values(response_status=response[0], error=response[1])
    )
    connection.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.id == claimed.delivery_id,
            webhook_deliveries.c.lease_token == claimed.token,
        )
        .values(
            status=status,
            next_at=now + wait,
            finished_at=None if status == "pending" else now,
            lease_token=None,
            lease_until=None,
        )
    )


def redeliver(connection: Connection, job_id: str, delivery_id: str) -> Delivery:
    """Send a message again, at once and with all its tries; one that is being sent is left alone.

    Raises:
        DeliveryNotFound: The job has no such message.
    """
    connection.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.job_id == job_id,
            webhook_deliveries.c.id == delivery_id,
            or_(
                webhook_deliveries.c.lease_until.is_(None),
                webhook_deliveries.c.lease_until < utc_now(),
            ),
        )
        .values(status="pending", tries_left=MOST_TRIES, next_at=utc_now(), finished_at=None)
    )
    found = [each for each in of_job(connection, job_id) if each.id == delivery_id]
    if not found:
        raise DeliveryNotFound(job_id, delivery_id)
    return found[0]


def of_job(connection: Connection, job_id: str) -> list[Delivery]:
    """Return the messages about a job with their attempts, oldest first."""
    rows = connection.execute(
        select(webhook_deliveries)
        .where(webhook_deliveries.c.job_id == job_id)
        .order_by(webhook_deliveries.c.id)
    ).all()
    made: dict[str, list[Attempt]] = {row.id: [] for row in rows}
    for each in connection.execute(
        select(webhook_attempts)
        .where(webhook_attempts.c.delivery_id.in_(made))
        .order_by(webhook_attempts.c.number)
    ):
        attempt = Attempt(each.number, each.at, each.response_status, each.error)
        made[each.delivery_id].append(attempt)
    return [_delivery(row, made[row.id]) for row in rows]


def forget(connection: Connection, older_than: timedelta) -> int:
    """Forget the messages that ended longer ago than that; return how many there were."""
    old = and_(
        webhook_deliveries.c.status != "pending",
        webhook_deliveries.c.finished_at < utc_now() - older_than,
    )
    return connection.execute(delete(webhook_deliveries).where(old)).rowcount


def count_by_status(connection: Connection) -> dict[Status, int]:
    """Return how many messages are in each state, those with none included."""
    counted = select(webhook_deliveries.c.status, func.count())
    rows = connection.execute(counted.group_by(webhook_deliveries.c.status))
    found = {str(status): int(count) for status, count in rows}
    return {status: found.get(status, 0) for status in STATUSES}


def _due(now: datetime, most_of_a_project: int) -> ColumnElement[bool]:
    """Pending, its time has come, and little enough of its project is being sent.

    To its receiver, nothing.
    """
    other = webhook_deliveries.alias()
    taken = (other.c.project == webhook_deliveries.c.project, other.c.lease_until >= now)
    busy = exists().where(*taken, other.c.receiver == webhook_deliveries.c.receiver)
    taken_count = select(func.count()).select_from(other).where(*taken).scalar_subquery()
    return and_(
        webhook_deliveries.c.status == "pending",
        webhook_deliveries.c.next_at <= now,
        ~busy,
        taken_count < most_of_a_project,
    )


def _delivery(row: Row[Any], attempts: Sequence[Attempt]) -> Delivery:
    return Delivery(
        id=row.id,
        event=row.event,
        status=row.status,
        next_at=row.next_at,
        created_at=row.created_at,
        finished_at=row.finished_at,
        attempts=tuple(attempts),
    )
