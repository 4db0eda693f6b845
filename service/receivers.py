"""What a request's `webhook` becomes: judged before anything is accepted, then a row."""

from __future__ import annotations

from sqlalchemy import Connection

from jobs.store import webhooks
from jobs.store.jobs import Job
from jobs.store.webhooks import Webhook
from jobs.webhooks.signing import new_secret
from models_cache.egress_policy import EgressPolicy, read_url
from service.schemas import WebhookBody, WebhookRequest


def checked_receiver(policy: EgressPolicy, webhook: WebhookRequest | None) -> str | None:
    """Judge what can be judged of a receiver now; return a new secret if it brings none.

    Raises:
        ForbiddenUrl: No message would ever be sent there.
    """
    if webhook is None:
        return None
    policy.check(webhook.url)
    return None if webhook.secret else new_secret()


def register(
    connection: Connection, job: Job, webhook: WebhookRequest | None, made_secret: str | None
) -> None:
    """Note who is to be told, in the transaction that accepts the job."""
    if webhook is None:
        return
    secret = webhook.secret or made_secret
    assert secret is not None, "made where none was given"
    row = Webhook(job.id, job.project, webhook.url, secret, read_url(webhook.url).origin)
    webhooks.register(connection, row)


def secret_to_tell(connection: Connection, job_id: str, made_secret: str | None) -> str | None:
    """Return the secret that this request made, unless an earlier one made the job."""
    webhook = webhooks.find(connection, job_id)
    return made_secret if webhook is not None and webhook.secret == made_secret else None


def webhook_body(job: Job, secret: str | None) -> WebhookBody | None:
    """Return who is told about a job; with the secret only where it was just made."""
    webhook = job.spec.get("webhook")
    return None if webhook is None else WebhookBody(url=webhook["url"], secret=secret)
