"""Sends the outbox, in threads of its own: a receiver that hangs delays no job and no other.

Each message is sent at least once: a sender that dies between sending and noting it is followed by
another attempt, with the same id. Receivers are judged at every attempt (`models_cache.egress`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

from jobs.away import AWAY
from jobs.store import webhooks
from jobs.store.database import Database
from jobs.store.webhooks import MOST_TRIES, Claim, Status
from jobs.webhooks.signing import signed_headers
from models_cache import faults
from models_cache.egress import Outgoing, Resolve, exchange, resolve_name
from models_cache.egress_errors import EgressFailed, ForbiddenUrl
from models_cache.egress_policy import EgressPolicy

log = logging.getLogger(__name__)

ATTEMPT_THREAD = "webhook-attempt"

_LOOK_SECONDS = 0.5
_AFTER_TROUBLE_SECONDS = 5.0
_LAST_WAIT_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 86_400.0
_GROWTH = 4.0
_JITTER = 0.2
_PATIENT = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, kw_only=True)
class SenderLimits:
    """How long and how often.

    Args:
        timeout_seconds: A receiver must have answered within.
        first_wait_seconds: Before the second attempt; each further one four times as long, at
            most a day, and a fifth more or less by chance.
        at_once: Messages sent at the same time, each to another receiver.
        at_once_of_a_project: So many of them for one project, whose receivers may all hang.
    """

    timeout_seconds: float = 15.0
    first_wait_seconds: float = 5.0
    at_once: int = 8
    at_once_of_a_project: int = 4


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        status: What becomes of the message; `pending`: another attempt.
        response_status: HTTP status of the answer, if there was one.
        error: Why it failed, as a stable word that tells nothing about our network.
        retry_after_seconds: What the receiver asked for.
    """

    status: Status
    response_status: int | None = None
    error: str | None = None
    retry_after_seconds: float = 0.0


class WebhookSender:
    """Threads of one worker process that empty the outbox.

    Args:
        database: Where the outbox is.
        policy: Where requests may lead.
        limits: How long and how often.
        resolve: Names to addresses.
    """

    def __init__(
        self,
        database: Database,
        policy: EgressPolicy,
        limits: SenderLimits,
        resolve: Resolve = resolve_name,
    ) -> None:
        self._database = database
        self._resolve = resolve
        self._policy = policy
        self._limits = limits
        self._free = threading.Semaphore(limits.at_once)
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take nothing new and wait for what is being sent, but not for receivers that hang.

        What is not noted in time is sent again by whoever comes next.
        """
        self._stopping = True
        self._wake.set()
        deadline = time.monotonic() + _LAST_WAIT_SECONDS
        self._thread.join(_LAST_WAIT_SECONDS)
        for _ in range(self._limits.at_once):
            self._free.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self._stopping:
            wait_seconds = _LOOK_SECONDS
            try:
                if self._send_next():
                    continue
            except AWAY as error:
                log.warning("the outbox of webhooks cannot be read; trying again: %s", error)
                wait_seconds = _AFTER_TROUBLE_SECONDS
            self._wake.wait(wait_seconds)
            self._wake.clear()

    def _send_next(self) -> bool:
        """Begin to send what is due; False if nothing is, or nobody is free."""
        if not self._free.acquire(blocking=False):
            return False
        claimed: Claim | None = None
        try:
            claimed = self._claim()
        finally:
            if claimed is None:
                self._free.release()
        if claimed is None:
            return False
        threading.Thread(
            target=self._attend, args=(claimed,), name=ATTEMPT_THREAD, daemon=True
        ).start()
        return True

    def _claim(self) -> Claim | None:
        most = self._limits.at_once_of_a_project
        with self._database.read() as connection:
            if not webhooks.is_due(connection, most):
                return None
        lease = timedelta(seconds=2 * self._limits.timeout_seconds)
        with self._database.write("webhook_claim") as connection:
            return webhooks.claim(connection, lease, most)

    def _attend(self, claimed: Claim) -> None:
        """Make one attempt and note how it ended."""
        try:
            outcome = send(self._policy, claimed, self._limits.timeout_seconds, self._resolve)
            faults.reach("webhook.after_send")
            wait = timedelta(seconds=self._wait_seconds(claimed, outcome))
            status = outcome.status
            if status == "pending" and claimed.tries_left == 0:
                status = "failed"
            response = outcome.response_status, outcome.error
            with self._database.write("webhook_note") as connection:
                webhooks.conclude(connection, claimed, status, response, wait)
            log.info(
                "webhook %s to %s, attempt %d: %s",
                claimed.delivery_id,
                claimed.receiver,
                claimed.number,
                outcome.error or outcome.response_status,
            )
        except AWAY as error:
            log.warning("the end of webhook %s is not noted: %s", claimed.delivery_id, error)
        finally:
            self._free.release()
            self._wake.set()

    def _wait_seconds(self, claimed: Claim, outcome: Outcome) -> float:
        done = MOST_TRIES - claimed.tries_left
        chance = 1 + _JITTER * (2 * secrets.randbelow(1001) / 1000 - 1)
        own = min(self._limits.first_wait_seconds * _GROWTH ** (done - 1), _LONGEST_WAIT_SECONDS)
        return max(own * chance, min(outcome.retry_after_seconds, _LONGEST_WAIT_SECONDS))


def send(policy: EgressPolicy, claimed: Claim, timeout_seconds: float, resolve: Resolve) -> Outcome:
    """Send a message once; the answer's status decides, its body is not read."""
    body = claimed.body.encode()
    outgoing = Outgoing(
        method="POST",
        url=claimed.url,
        headers={
            "Content-Type": "application/json",
            **signed_headers(claimed.secret, claimed.delivery_id, int(time.time()), body),
        },
        body=body,
        connect_seconds=timeout_seconds,
        idle_seconds=timeout_seconds,
        total_seconds=timeout_seconds,
    )
    try:
        with exchange(policy, outgoing, resolve) as answer:
            return _outcome_of(answer.status, answer.headers.get("retry-after", ""))
    except ForbiddenUrl:
        return Outcome("blocked", error="forbidden-address")
    except EgressFailed as error:
        return Outcome("pending", error=error.kind)


def _outcome_of(status: int, retry_after: str) -> Outcome:
    if HTTPStatus(200) <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Outcome("delivered", status)
    if status == HTTPStatus.GONE:
        return Outcome("gone", status, "gone")
    seconds = float(retry_after) if status in _PATIENT and retry_after.isdecimal() else 0.0
    return Outcome("pending", status, "http-status", seconds)
