"""How much a worker does at once, how long it waits, and how often it tries again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """How long and how often; the defaults are documented in docs/operations.md."""

    train_slots: int = 1
    data_slots: int = 1
    weights_slots: int = 1
    engine_slots: int = 1
    export_slots: int = 1
    lease_seconds: float = 40.0
    heartbeat_seconds: float = 10.0
    tick_seconds: float = 0.05
    sweep_seconds: float = 5.0
    cancel_grace_seconds: float = 1.0
    pause_grace_seconds: float = 30.0
    #: Of trainings. With the end of the fork server less than the supervisor's, so that jobs are
    #: queued again before the worker is killed.
    drain_grace_seconds: float = 6.0
    stall_seconds: float = 300.0
    memory_patience_seconds: float = 60.0  # for memory that other programs hold
    disk_cache_bytes: int = 20 << 30
    idempotency_seconds: float = 86_400.0
    webhook_retention_seconds: float = 30 * 86_400.0
    low_water_bytes: int = 0  # with less of the disk free nothing is started
    fault_limit: int = 3
    #: Attempts in a row without a new checkpoint, whoever's fault: a job that takes its worker or
    #: its fork server down each time must end as well.
    attempt_limit: int = 50
    first_backoff_seconds: float = 0.5

    def drain_grace_of(self, slot: str) -> float:
        """Return how many seconds a child has to end in a drain; only trainings leave something."""
        return self.drain_grace_seconds if slot == "train" else self.cancel_grace_seconds


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long what is not needed any more is kept.

    Args:
        grace_seconds: Files that no row points to.
        runs_days: Run folders of jobs that ended: logs, figures, predictions.
        figures_days: Figures by step in the event log of jobs that ended.
    """

    grace_seconds: float = 86_400.0
    runs_days: float = 30.0
    figures_days: float = 90.0
