"""OpenTelemetry: a span for each request, with events for leaving the queue, the first block and the end.

Needs the extra `unmask[otel]`; imported only if `--otlp-endpoint` is set. A client's `traceparent` is the span's
parent. Attributes have OpenTelemetry's GenAI names, and contain no prompt or answer.
"""

import time
from collections.abc import Callable
from importlib.metadata import version

from opentelemetry import context
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine import FinishReason
from server.observe.observer import RequestStats


def connect(endpoint: str) -> TracerProvider:
    """A provider that sends spans to a collector as OTLP over HTTP, in batches, from its own thread."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": "unmask", "service.version": version("unmask")})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return provider


class Tracing:
    """An observer that writes a span when a request ends, because all its times are known by then."""

    def __init__(self, provider: TracerProvider, model_name: str) -> None:
        self._tracer = provider.get_tracer("unmask")
        self._model_name = model_name

    def on_block(self, stats: RequestStats, seconds: float) -> None:
        pass

    def on_end(self, stats: RequestStats) -> None:
        at = _clock()
        sampling, diffusion, usage = stats.submission.sampling, stats.submission.diffusion, stats.usage
        span = self._tracer.start_span(
            f"text_completion {self._model_name}",
            kind=SpanKind.SERVER,
            start_time=at(stats.submitted),
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": self._model_name,
                "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.response.id": stats.submission.request_id,
                "gen_ai.response.finish_reasons": [str(stats.finish_reason)],
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "unmask.forwards": usage.forwards,
                "unmask.rows_computed": usage.rows_computed,
                "unmask.cache": diffusion.cache,
                "unmask.unmask": diffusion.unmask,
                "unmask.visible_tokens": usage.visible_tokens,
            },
        )
        for name, moment in {
            "admitted": stats.admitted,
            "first block": stats.first_block,
            "end": stats.ended,
        }.items():
            if moment is not None:
                span.add_event(name, timestamp=at(moment))
        if stats.finish_reason is FinishReason.ERROR:
            span.set_status(StatusCode.ERROR)
        span.end(at(stats.ended or stats.submitted))


class TraceContext:
    """Middleware that makes the client's trace context the parent of the spans of its requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = context.attach(extract(dict(Headers(scope=scope))))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def _clock() -> Callable[[float], int]:
    """A function from seconds of `time.monotonic()` to nanoseconds since 1970."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda moment: int(moment * 1e9) + offset
