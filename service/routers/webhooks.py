"""Calls about the messages that tell a job's end: their attempts, and sending one again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from jobs.store import webhooks
from jobs.store.webhooks import Delivery
from service.routers.jobs import JobDep
from service.schemas import DeliveryAttemptBody, DeliveryBody, Page
from service.services import ServicesDep

router = APIRouter(prefix="/v1/jobs/{job_id}/webhook/deliveries", tags=["jobs"])


@router.get("")
def list_deliveries(services: ServicesDep, job: JobDep) -> Page[DeliveryBody]:
    """List the messages about a job with their attempts; empty before its end."""
    with services.database.read() as connection:
        found = webhooks.of_job(connection, job.id)
    return Page(data=[_body(each) for each in found], has_more=False, next=None)


@router.post("/{delivery_id}/redeliver", status_code=202)
def redeliver(
    services: ServicesDep,
    job: JobDep,
    delivery_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9_]{1,48}$")],
) -> DeliveryBody:
    """Send a message again, with the same id; one that is being sent is left alone."""
    with services.database.write("webhook_redeliver") as connection:
        return _body(webhooks.redeliver(connection, job.id, delivery_id))


def _body(delivery: Delivery) -> DeliveryBody:
    attempts = [
        DeliveryAttemptBody(
            number=each.number, at=each.at, response_status=each.response_status, error=each.error
        )
        for each in delivery.attempts
    ]
    return DeliveryBody(
        id=delivery.id,
        event=delivery.event,
        status=delivery.status,
        attempts=attempts,
        next_attempt_at=delivery.next_at if delivery.status == "pending" else None,
        created_at=delivery.created_at,
        finished_at=delivery.finished_at,
    )
