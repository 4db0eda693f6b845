"""The call that shows the audit log."""

from __future__ import annotations

from fastapi import APIRouter

from jobs.store.tables import DEFAULT_PROJECT
from service.callers import CallerDep
from service.key_schemas import AuditEntryBody
from service.schemas import Page
from service.services import After, Limit, ServicesDep

router = APIRouter(prefix="/v1/audit", tags=["keys"])


@router.get("")
def list_audit(
    services: ServicesDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[AuditEntryBody]:
    """List who changed what in the project, or was refused, newest first."""
    projects: list[str | None] = [caller.project]
    if caller.project == DEFAULT_PROJECT:
        projects.append(None)  # strangers knock at the service, not at a project
    found = services.audit.page(projects, limit + 1, after)
    return Page.of([AuditEntryBody(**entry) for entry in found], limit)
