"""What the inference process counts of itself, as a page of Prometheus' text format.

Labels are architectures, never artifacts: their number is bounded by the catalogue, while models
come by the thousand. The api appends this page to its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models_cache.loaded import Occupancy
from models_cache.served_models import BackboneKey

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_ARCHITECTURE = ("architecture",)

_Image = TypeVar("_Image")
_Outcome = TypeVar("_Outcome")
Forward = Callable[[BackboneKey, Sequence[_Image]], Sequence[_Outcome]]


class ServingMetrics:
    """Counters and histograms of one inference process. Thread-safe.

    Args:
        occupancy: Gives what is loaded, by kind.
        waiting: Gives how many images are in each place between acceptance and answer.
    """

    def __init__(
        self,
        occupancy: Callable[[], Mapping[str, Occupancy]],
        waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        disable_created_metrics()  # a second series beside each: the process's start says as much
        self._registry = CollectorRegistry()
        self._registry.register(_Now(occupancy, waiting))
        ProcessCollector("graft_inference", registry=self._registry)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(
                f"graft_inference_{name}_seconds",
                what,
                _ARCHITECTURE,
                buckets=SECONDS_BUCKETS,
                registry=self._registry,
            )

        self._decode = seconds("decode", "Decoding and preprocessing of an image, threads included")
        self._queue = seconds("queue", "From an image's queueing to the start of its batch")
        self._forward = seconds("forward", "One forward pass of a batch, heads included")
        self._batch = Histogram(
            "graft_inference_batch_images",
            "Images of one forward pass",
            _ARCHITECTURE,
            buckets=_IMAGES_BUCKETS,
            registry=self._registry,
        )
        self._failures = Counter(
            "graft_inference_failed_batches",
            "Forward passes that raised; their images were tried again in halves",
            _ARCHITECTURE,
            registry=self._registry,
        )

        self._refused = Counter(
            "graft_inference_refused_images",
            "Images that could not be decoded",
            _ARCHITECTURE,
            registry=self._registry,
        )

    def timed(self, forward: Forward[_Image, _Outcome]) -> Forward[_Image, _Outcome]:
        """Return `forward` with each of its batches counted and timed."""

        def measured(key: BackboneKey, images: Sequence[_Image]) -> Sequence[_Outcome]:
            started = time.monotonic()
            try:
                outcomes = forward(key, images)
            except BaseException:
                self._failures.labels(key.architecture).inc()
                raise
            self._forward.labels(key.architecture).observe(time.monotonic() - started)
            self._batch.labels(key.architecture).observe(len(images))
            return outcomes

        return measured

    def saw_refusal(self, key: BackboneKey) -> None:
        """Count an image that could not be decoded."""
        self._refused.labels(key.architecture).inc()

    def saw_decode(self, key: BackboneKey, seconds: float) -> None:
        """Count an image that was decoded."""
        self._decode.labels(key.architecture).observe(seconds)

    def saw_queue(self, key: BackboneKey, seconds: float) -> None:
        """Count an image that a batch took."""
        self._queue.labels(key.architecture).observe(seconds)

    def page(self) -> bytes:
        """Return everything as it is now."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is read when somebody asks, instead of being counted along the way."""

    def __init__(
        self,
        occupancy: Callable[[], Mapping[str, Occupancy]],
        waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        self._occupancy = occupancy
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        kind = ("kind",)
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "count": GaugeMetricFamily("graft_inference_loaded", "Loaded now", labels=kind),
            "loaded_bytes": GaugeMetricFamily(
                "graft_inference_loaded_bytes", "What loaded ones take", labels=kind
            ),
            "loads": CounterMetricFamily("graft_inference_loads", "Loads", labels=kind),
            "load_seconds": CounterMetricFamily(
                "graft_inference_load_seconds", "Time of all loads together", labels=kind
            ),
            "evictions": CounterMetricFamily("graft_inference_evictions", "Evictions", labels=kind),
        }
        for name, occupancy in self._occupancy().items():
            for field, family in families.items():
                family.add_metric((name,), getattr(occupancy, field))
        yield from families.values()
        waiting = GaugeMetricFamily(
            "graft_inference_images", "Accepted and not yet answered", labels=("place",)
        )
        for place, images in self._waiting().items():
            waiting.add_metric((place,), images)
        yield waiting
