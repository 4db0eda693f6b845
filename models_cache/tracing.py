"""Spans of OpenTelemetry, where somebody collects them; nothing is imported where nobody does.

A carrier is how a span is handed to another process: the W3C header `traceparent` as a dictionary,
empty where nobody collects. Everything but the address (sampling, headers of the exporter, further
attributes) is set by OpenTelemetry's own `OTEL_...` variables, which its library reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Carrier = dict[str, str]

_EXPORT_SECONDS = 3  # a collector that is away must not keep a process from ending
_tracer: Any = None  # of opentelemetry, once `collected` began


@contextmanager
def collected(url: str, service: str, version: str) -> Iterator[None]:
    """Send spans of a block to a collector; what waits is sent at its end.

    Args:
        url: Of the collector (OTLP over HTTP), without `/v1/traces`; empty: no spans.
        service: Name of this process among others, such as `graft-api`.
        version: Of this program.

    Raises:
        ImportError: `url` is given, and the extra `telemetry` is not installed.
    """
    if not url:
        yield
        return
    global _tracer  # one collector per process, set by its composition root
    # A tenth of a second, for those alone who collect
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({"service.name": service, "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    address = f"{url.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=address, timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _tracer = provider.get_tracer("graft", version)
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


@contextmanager
def span(
    name: str, parent: Mapping[str, str], attributes: Mapping[str, str | int] | None = None
) -> Iterator[None]:
    """Measure a block as a span below the one that a carrier names.

    An error that leaves the block is noted.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry import propagate  # noqa: PLC0415

    context = propagate.extract(dict(parent))
    with _tracer.start_as_current_span(name, context=context, attributes=dict(attributes or {})):
        yield


class OpenSpan:
    """A span that is ended by hand, such as that of an attempt among others.

    Args:
        name: What is measured.
        parent: Carrier of the span above.
        attributes: What to say of it.
    """

    def __init__(
        self, name: str, parent: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> None:
        self.carrier: Carrier = dict(parent)
        self._span: Any = None
        if _tracer is not None:
            from opentelemetry import propagate, trace  # noqa: PLC0415

            context = propagate.extract(dict(parent))
            self._span = _tracer.start_span(name, context=context, attributes=dict(attributes))
            propagate.inject(self.carrier, trace.set_span_in_context(self._span, context))

    def end(self) -> None:
        """End it; once more does nothing."""
        if self._span is not None:
            self._span.end()
            self._span = None


def carrier() -> Carrier:
    """Return the span that is current here, for another process."""
    found: Carrier = {}
    if _tracer is not None:
        from opentelemetry import propagate  # noqa: PLC0415

        propagate.inject(found)
    return found
