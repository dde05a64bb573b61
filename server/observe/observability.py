"""Makes the observers of one app: metrics, the log, and tracing if it is configured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.routing import BaseRoute

from engine import ConfigError, EngineLoop
from server.observe.logs import RequestLog
from server.observe.metrics import Metrics, make_metrics
from server.observe.metrics.http import HttpCounting
from server.observe.observer import Observer, Observers, TokenCounts
from server.settings.tree import Settings
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True, slots=True)
class Observability:
    """The observers and metrics of one app, as `create_app` needs them."""

    observers: Observers
    metrics: Metrics
    is_traced: bool

    def install(self, app: FastAPI, routes: Iterable[BaseRoute]) -> None:
        """Adds the middleware that observes. Call it after all other middleware has been added."""
        app.state.registry = self.metrics.registry
        app.state.count_refused_connection = self.metrics.http.count_refused_connection
        self.metrics.http.expect(routes)
        app.add_middleware(HttpCounting, metrics=self.metrics.http)
        if self.is_traced:
            from server.observe.tracing import TraceContext

            app.add_middleware(TraceContext)


def make_observability(
    engine: EngineLoop, tokenizer: Tokenizer, settings: Settings, tracer: "TracerProvider | None"
) -> Observability:
    tokens = TokenCounts()
    metrics, name = make_metrics(engine, tokens, settings), settings.model_names[0]
    log = RequestLog(name, tokenizer if settings.server.log_prompts else None)
    members: list[Observer] = [*metrics.observers, log]
    if tracer:
        from server.observe.tracing import Tracing

        members.append(Tracing(tracer, name))
    return Observability(Observers(members, tokens), metrics, tracer is not None)


def tracer_of(settings: Settings) -> "TracerProvider | None":
    """The provider for `otlp_endpoint`, if set. Raises ConfigError if the extra `otel` is not installed."""
    if not (endpoint := settings.server.otlp_endpoint):
        return None
    try:
        from server.observe.tracing import connect
    except ImportError:
        raise ConfigError("otlp_endpoint needs OpenTelemetry: pip install 'unmask[otel]'") from None
    return connect(endpoint)
