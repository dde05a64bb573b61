"""Who watches requests in one app: metrics, the log, and tracing where it is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.routing import BaseRoute

from engine import ConfigError, EngineLoop
from server.logs import RequestLog
from server.metrics import Metrics, make_metrics
from server.metrics.http import HttpCounting
from server.settings import Settings
from server.text import Tokenizer
from server.watch import TokenCounts, Watch, Witness

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True, slots=True)
class Observers:
    """What `create_app` needs of them."""

    watch: Watch
    metrics: Metrics
    is_traced: bool

    def install(self, app: FastAPI, routes: Iterable[BaseRoute]) -> None:
        """Once all other middleware is in."""
        app.state.registry = self.metrics.registry
        app.state.count_refused_connection = self.metrics.http.count_refused_connection
        self.metrics.http.expect(routes)
        app.add_middleware(HttpCounting, metrics=self.metrics.http)
        if self.is_traced:
            from server.tracing import TraceContext

            app.add_middleware(TraceContext)


def observers(
    engine: EngineLoop, tokenizer: Tokenizer, settings: Settings, tracer: "TracerProvider | None"
) -> Observers:
    tokens = TokenCounts()
    metrics, name = make_metrics(engine, tokens, settings), settings.model_names[0]
    log = RequestLog(name, tokenizer if settings.server.log_prompts else None)
    witnesses: list[Witness] = [*metrics.witnesses, log]
    if tracer:
        from server.tracing import Tracing

        witnesses.append(Tracing(tracer, name))
    return Observers(Watch(witnesses, tokens), metrics, tracer is not None)


def tracer_of(settings: Settings) -> "TracerProvider | None":
    """Raises ConfigError if traces are asked for and the extra is not installed."""
    if not (endpoint := settings.server.otlp_endpoint):
        return None
    try:
        from server.tracing import connect
    except ImportError:
        raise ConfigError("otlp_endpoint needs OpenTelemetry: pip install 'unmask[otel]'") from None
    return connect(endpoint)
