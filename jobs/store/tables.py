"""Every table. Alembic's migrations build them; a test compares the two.

Every table that users' things live in has `project` and unique keys over `(project, name)`, so
that tenants need no migration. Times are UTC with microseconds, as ISO text that sorts.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import JSON as SQL_JSON
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

DEFAULT_PROJECT = "default"


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time as text of fixed width: sorts the same on every database."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Store; a naive time is a bug of ours."""
        if value is None:
            return None
        assert value.tzinfo is not None, "times are aware"
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Load."""
        return None if value is None else datetime.fromisoformat(value)


#: NULL, never the JSON text "null": `IS NULL` means absent.
JSON = SQL_JSON(none_as_null=True)

#: Names that pages are ordered by: by their bytes, whatever language the server was set up for.
ORDERED_NAME = String(63).with_variant(String(63, collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("parent", String(48), nullable=True),
    Column("status", String(16), nullable=False),  # processing | ready | rejected
    Column("archive_sha256", String(64), nullable=False),
    Column("archive_bytes", BigInteger, nullable=False),
    Column("manifest_sha256", String(64), nullable=True),
    Column("report_sha256", String(64), nullable=True),
    #: What the newest job found in the features of its images.
    Column("examined_sha256", String(64), nullable=True),
    Column("digest", String(64), nullable=True),
    Column("task", String(32), nullable=True),
    Column("classes", JSON, nullable=True),
    Column("splits", JSON, nullable=True),
    Column("problem", JSON, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("project", "name", "version"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # order of acceptance
    Column("id", String(48), nullable=False, unique=True),
    Column("project", String(63), nullable=False),
    Column("type", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("phase", String(32), nullable=True),
    Column("priority", Integer, nullable=False),
    Column("dataset_id", String(48), nullable=True),
    Column("model", String(63), nullable=True),
    Column("spec", JSON, nullable=False),
    Column("resolved", JSON, nullable=True),
    Column("progress", JSON, nullable=True),
    Column("metrics", JSON, nullable=False),
    Column("resources", JSON, nullable=False),
    Column("result", JSON, nullable=True),
    Column("error", JSON, nullable=True),
    Column("attempt", Integer, nullable=False),
    #: Attempts in a row that died by their own fault without a new checkpoint.
    Column("faults", Integer, nullable=False),
    #: The attempt that wrote the newest checkpoint; 0 before the first.
    Column("checkpoint_attempt", Integer, nullable=False),
    Column("not_before", UtcTime, nullable=True),
    Column("retry_of", String(48), nullable=True),
    Column("worker_id", String(64), nullable=True),
    Column("lease_token", String(48), nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("event_seq", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime, nullable=True),
    Column("finished_at", UtcTime, nullable=True),
    Index("ix_jobs_status_priority", "status", "priority", "number"),
    Index("ix_jobs_dataset_id", "dataset_id"),
    Index("ix_jobs_retry_of", "retry_of", unique=True),
    sqlite_autoincrement=True,
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(48), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),  # state | phase | metrics | checkpoint | ...
    Column("data", JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("name", ORDERED_NAME, primary_key=True),
    Column("last_version", Integer, nullable=False),  # numbers are never reused
    Column("deleted", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("artifact_digest", String(64), nullable=False),
    Column("files", JSON, nullable=False),
    Column("task", String(32), nullable=False),
    Column("architecture", String(64), nullable=False),
    Column("classes", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("evaluation_sha256", String(64), nullable=True),
    Column("job_id", String(48), nullable=True),
    Column("dataset_id", String(48), nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Index("ix_model_versions_job_id", "job_id", "artifact_digest", unique=True),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("alias", ORDERED_NAME, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

#: One row, or none before the first change; what is remembered of models is true while it stays.
model_changes = Table(
    "model_changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("image_sha256", String(64), nullable=False),
    Column("image_bytes", BigInteger, nullable=False),
    Column("labels", JSON, nullable=False),  # what it really shows
    Column("predicted", JSON, nullable=False),  # what the version said
    Column("dataset_id", String(48), nullable=True),  # the version of a data set that has it
    Column("created_at", UtcTime, nullable=False),
    Index("ix_feedback_project_model_id", "project", "model", "id"),
)

shadow_comparisons = Table(
    "shadow_comparisons",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),  # that answered
    Column("shadow", Integer, primary_key=True),  # that was asked the same
    Column("compared", Integer, nullable=False),
    Column("agreed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("sum_difference", Float, nullable=False),
    Column("most_difference", Float, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("until", UtcTime, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),  # of method, path and body
    Column("resource", String(128), nullable=False),  # what the first request made
    Column("created_at", UtcTime, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("job_id", String(48), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("secret", String(128), nullable=False),  # it signs: a hash of it would not do
    Column("receiver", String(300), nullable=False),  # scheme, host and port
    Column("created_at", UtcTime, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(48), primary_key=True),  # sent as `webhook-id`
    Column("project", String(63), nullable=False),
    Column("job_id", String(48), ForeignKey("webhooks.job_id", ondelete="CASCADE"), nullable=False),
    Column("receiver", String(300), nullable=False),
    Column("event", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("status", String(16), nullable=False),  # pending | delivered | failed | blocked | gone
    Column("attempts", Integer, nullable=False),
    Column("tries_left", Integer, nullable=False),
    Column("next_at", UtcTime, nullable=False),
    Column("lease_token", String(48), nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime, nullable=True),
    Index("ix_webhook_deliveries_status_next_at", "status", "next_at"),
    Index("ix_webhook_deliveries_job_id", "job_id"),
    Index("ix_webhook_deliveries_lease_until", "lease_until"),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column(
        "delivery_id",
        String(48),
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("number", Integer, primary_key=True),
    Column("project", String(63), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("response_status", Integer, nullable=True),
    Column("error", String(32), nullable=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scope", String(16), nullable=False),  # read | train | admin
    Column("secret_sha256", String(64), nullable=False, unique=True),
    #: The secret before the last rotation opens the key until then.
    Column("previous_sha256", String(64), nullable=True),
    Column("previous_until", UtcTime, nullable=True),
    Column("limits", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
    Column("last_used_at", UtcTime, nullable=True),
    Index("ix_api_keys_previous_sha256", "previous_sha256"),
    Index("ix_api_keys_project_id", "project", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(32), nullable=False),
    Column("heartbeat_at", UtcTime, nullable=False),
)
