"""Spans as an exporter sees them."""

import sys
import time
from typing import cast

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine import ConfigError, EngineLoop, RequestFailed
from server.http.app import create_app
from server.observe.observability import tracer_of
from server.settings.tree import build

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
async def client(engine, tokenizer, exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(cast(EngineLoop, engine), tokenizer, build({"served_model_name": ["fake"]}), provider)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    provider.shutdown()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_span_for_each_request(client, exporter, stream):
    before = time.time_ns()
    body = {"prompt": "secret", "max_tokens": 7, "stream": stream}
    await client.post("/v1/completions", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    after = time.time_ns()
    [span] = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.kind is SpanKind.SERVER
    assert span.name == "text_completion fake"
    assert span.attributes["gen_ai.usage.input_tokens"] == 6
    assert span.attributes["gen_ai.usage.output_tokens"] == 7
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert [event.name for event in span.events] == ["first block", "end"]
    moments = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert moments == sorted(moments)
    margin = 1_000_000
    assert before - margin <= span.start_time
    assert span.end_time <= after + margin
    assert "secret" not in span.to_json()


async def test_without_a_parent_it_begins_a_trace(client, exporter):
    await client.post("/v1/completions", json={"prompt": "ab"})
    await client.post("/v1/completions", json={"prompt": "ab"})
    first, second = exporter.get_finished_spans()
    assert first.parent is second.parent is None
    assert first.context.trace_id != second.context.trace_id


async def test_a_failure_is_marked(client, exporter, engine):
    engine.script = lambda _: ["one ", RequestFailed("broken")]
    await client.post("/v1/completions", json={"prompt": "ab"})
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_admission_is_an_event(llada_tiny, exporter, submission):
    """With an engine that tells when it was."""
    from engine import EngineConfig, load
    from server.observe.observer import Observers, Siblings
    from server.observe.tracing import Tracing

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = EngineLoop(load(EngineConfig(model=str(llada_tiny))))
    engine.start()
    asked = submission(gen_length=32)
    stream = Observers([Tracing(provider, "fake")]).observe(
        engine.submit([asked])[0], asked, Siblings(n=1, num_running=1)
    )
    async for output in stream:
        if output.finish_reason:
            stream.finish(output.finish_reason)
            break
    await engine.stop(0)
    [span] = exporter.get_finished_spans()
    assert [event.name for event in span.events] == ["admitted", "first block", "end"]
    assert span.start_time <= span.events[0].timestamp <= span.events[1].timestamp
    provider.shutdown()


def test_it_is_off_unless_asked_for():
    assert tracer_of(build({})) is None
    tracer_of(build({"otlp_endpoint": "http://127.0.0.1:4318"})).shutdown()


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "server.observe.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install 'unmask\[otel\]'"):
        tracer_of(build({"otlp_endpoint": "http://127.0.0.1:4318"}))
