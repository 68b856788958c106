"""Optional OpenTelemetry traces: one span per request, with child spans for its steps.

The spans of a batch belong to the request that started it. Like metric labels, names and attributes are route templates
and fixed words, never text from a client. OpenTelemetry's own variables configure the exporter and the sampling
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME).
"""

from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.auth import call_of


class Tracing:
    """Creates spans and exports them in the background."""

    def __init__(self) -> None:
        own = {"service.name": "segue", "service.version": version("segue")}
        self._provider = TracerProvider(resource=Resource(own).merge(Resource.create()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Tracer = self._provider.get_tracer("segue")

    def span(self, step: str) -> AbstractContextManager[Any]:
        """A context manager for a span within the current request."""
        return self.tracer.start_as_current_span(step)

    def end(self) -> None:
        """Export the remaining spans and shut down."""
        self._provider.shutdown()


class Traced:
    """ASGI middleware that creates a span per request. It continues the trace in the header `traceparent`."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        carried = {name: value for name, value in headers.items() if name in ("traceparent", "tracestate")}
        call = call_of(scope["method"], scope["path"], b"")
        with self._tracer.start_as_current_span(call.name, extract(carried), SpanKind.SERVER) as span:

            async def send_and_record_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, send_and_record_status)
