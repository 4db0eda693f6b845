"""What the api process counts of itself, and the rows and files it looks at for `/metrics`.

Labels are bounded: routes are templates, methods are HTTP's own, and of models the first hundred
that are asked have a series each, all others one together (no model's name has an underscore
first). Histograms have no model: a thousand models would make sixteen thousand series of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.store.figures import Health
from jobs.store.webhooks import Status
from service.job_metrics import JobMetrics
from service.version import VERSION

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_MODELS = 100
_OTHER_MODELS = "_others"
_NO_ROUTE = "none"


@dataclass(frozen=True)
class Backlog:
    """What the database says of the work.

    Args:
        jobs: How many jobs are in each state.
        queue_age_seconds: For how long the oldest queued job waits; 0 if none does.
        workers_alive: Workers heard of lately.
        health: Leases, heartbeats and attempts.
        webhooks: How many messages of webhooks are in each state.
    """

    jobs: dict[str, int]
    queue_age_seconds: float
    workers_alive: int
    health: Health
    webhooks: Mapping[Status, int]


@dataclass(frozen=True)
class Surroundings:
    """What a page of metrics tells beside the api's own counts.

    Args:
        backlog: None if the database did not answer.
        disk_free_bytes: Of the data folder's disk.
        disk_total_bytes: The same.
        data_bytes: By folder of state, once looked up.
        inference_up: Whether the inference process answered.
    """

    backlog: Backlog | None
    disk_free_bytes: int
    disk_total_bytes: int
    data_bytes: dict[str, int]
    inference_up: bool


class ServiceMetrics:
    """Counters and histograms of one api process. Thread-safe."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series beside each: the process's start says as much
        self._registry = CollectorRegistry()
        ProcessCollector("graft_api", registry=self._registry)
        self._requests = Counter(
            "graft_http_requests",
            "Requests by route and status; 499: the client hung up",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "graft_http_request_seconds",
            "From the request's head to the end of the answer",
            ("method", "route"),
            buckets=_SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._images = Counter(
            "graft_predicted_images",
            f"Images answered, by model; those behind the first {_MOST_MODELS} are together",
            ("model",),
            registry=self._registry,
        )
        self._models: set[str] = set()
        self.jobs = JobMetrics(self._registry)

    def saw_request(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Count a request by its ASGI scope, which has the route once one was found."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", _NO_ROUTE)
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def saw_images(self, model: str, images: int) -> None:
        """Count images that a model answered."""
        if model not in self._models:
            if len(self._models) >= _MOST_MODELS:
                model = _OTHER_MODELS
            else:
                self._models.add(model)
        self._images.labels(model).inc(images)

    def page(self, surroundings: Surroundings) -> bytes:
        """Return everything as it is now, in Prometheus' text format."""
        around = CollectorRegistry()
        around.register(_Around(surroundings))
        return generate_latest(self._registry) + generate_latest(around)


class _Around(Collector):
    """The families of one look around."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    def collect(self) -> Iterator[Metric]:
        """Yield the families; what cannot be told is missing, not zero."""
        seen = self._surroundings
        version = GaugeMetricFamily("graft_info", "The running version", labels=("version",))
        version.add_metric((VERSION,), 1)
        yield version
        yield _gauge("database_up", "Whether the database answered", seen.backlog is not None)
        yield _gauge("inference_up", "Whether inference answered", seen.inference_up)
        yield _gauge("disk_free_bytes", "Free for the data folder", seen.disk_free_bytes)
        yield _gauge("disk_total_bytes", "Of the data folder's disk", seen.disk_total_bytes)
        data = GaugeMetricFamily("graft_data_bytes", "Used by state", labels=("folder",))
        for folder, used_bytes in seen.data_bytes.items():
            data.add_metric((folder,), used_bytes)
        yield data
        if seen.backlog is None:
            return
        jobs = GaugeMetricFamily("graft_jobs", "Jobs by state", labels=("status",))
        for status, count in seen.backlog.jobs.items():
            jobs.add_metric((status,), count)
        yield jobs
        age_seconds = seen.backlog.queue_age_seconds
        yield _gauge("job_queue_age_seconds", "The oldest queued job waits so long", age_seconds)
        yield _gauge("workers_alive", "Workers heard of lately", seen.backlog.workers_alive)
        health = seen.backlog.health
        yield _gauge("leases", "Jobs that a worker holds", health.leases)
        yield _gauge("leases_overdue", "Of these, with a lease that is over", health.leases_overdue)
        yield _gauge("jobs_retried", "Unfinished jobs beyond attempt 1", health.jobs_retried)
        age_seconds = health.heartbeat_age_seconds
        yield _gauge("worker_heartbeat_age_seconds", "The most silent worker's", age_seconds)
        what = "Messages of webhooks by state, while they are kept"
        messages = GaugeMetricFamily("graft_webhook_deliveries", what, labels=("status",))
        for status, count in seen.backlog.webhooks.items():
            messages.add_metric((status,), count)
        yield messages


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"graft_{name}", what, value=value)
