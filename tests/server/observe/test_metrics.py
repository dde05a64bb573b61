"""What /metrics says, and that it says it from the first scrape on."""

from dataclasses import replace
from typing import cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Discard, EngineLoop, FinishReason, RequestFailed, RowKind
from engine.core.histogram import Distribution
from server.guards.auth import PROBES
from server.http.app import create_app
from server.observe.metrics.families import token_buckets
from server.settings.tree import build


async def scrape(client):
    """Family name -> family."""
    response = await client.get("/metrics", headers={"authorization": "Bearer key"})
    assert response.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def value(families, sample, **labels):
    """One sample by its name and some of its labels."""
    [found] = [
        candidate.value
        for family in families.values()
        for candidate in family.samples
        if candidate.name == sample and labels.items() <= candidate.labels.items()
    ]
    return found


async def test_gauges_and_counters_are_the_engines_statistics(api, engine):
    engine.stats = replace(
        engine.stats,
        decoding=replace(
            engine.stats.decoding,
            rows={RowKind.BLOCK: 900, RowKind.REFRESH: 200},
            tokens_discarded={Discard.AFTER_STOP: 31, Discard.OVER_LENGTH: 37, Discard.WITHDRAWN: 41},
            cache_lookups=5000,
            cache_hits=3900,
            full_refreshes=43,
            denoising_steps=47,
            blocks=53,
            tokens_decoded=59,
            tokens_forced=61,
            tokens_edited=67,
        ),
    )
    families = await scrape(api.client)
    for name, expected in {
        "requests_running": 2,
        "requests_waiting": 3,
        "kv_pages_used": 5,
        "kv_pages_capacity": 128,
        "batch_rows_capacity": 2048,
        "forwards_total": 70,
        "kv_pages_kept": 9,
        "preemptions_total": 6,
        "kv_evictions_total": 7,
        "kv_tokens_evicted_total": 8,
        "kv_pages_freed_total": 9,
        "prompt_tokens_looked_up_total": 90,
        "prompt_tokens_found_total": 64,
        "engine_heartbeat_age_seconds": 0.25,
        "accepting_requests": 1,
        "weights_bytes": 4_000_000,
        "kv_cache_bytes": 1 << 20,
        "kv_bytes_per_token": 256,
        "cache_lookups_total": 5000,
        "cache_hits_total": 3900,
        "cache_full_refreshes_total": 43,
        "denoising_steps_total": 47,
        "blocks_total": 53,
        "tokens_decoded_total": 59,
        "tokens_forced_total": 61,
        "tokens_edited_total": 67,
    }.items():
        assert value(families, f"unmask_{name}", model_name="fake") == expected, name
    assert value(families, "unmask_requests_rejected_total", reason="queue_full") == 23
    assert value(families, "unmask_rows_computed_total", kind="refresh") == 200
    assert value(families, "unmask_tokens_discarded_total", reason="over_length") == 37
    [config] = families["unmask_config_info"].samples
    assert config.value == 1
    assert config.labels["family"] == "llada"
    assert config.labels["default_unmask"] == "threshold"
    assert (config.labels["kv_dtype"], config.labels["kv_prune"]) == ("float32", "0")
    assert config.labels["quantization"] == "none"


async def test_the_engines_histograms_are_cumulative(api, engine):
    reading = Distribution((1.0, 2.0), (3, 4, 5), 21.5)
    engine.stats = replace(
        engine.stats, decoding=replace(engine.stats.decoding, confidence=reading, host_seconds=reading)
    )
    families = await scrape(api.client)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["unmask_commit_confidence"].samples
        if sample.name.endswith("_bucket")
    }
    assert buckets == {"1.0": 3, "2.0": 7, "+Inf": 12}
    assert value(families, "unmask_commit_confidence_sum") == 21.5
    assert value(families, "unmask_step_seconds_count", part="host") == 12
    assert value(families, "unmask_step_seconds_count", part="forward") == 0


async def test_all_series_are_there_before_the_first_request_and_no_others_after(api, engine):
    def series(families):
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in families.values()
            for sample in family.samples
        }

    before = series(await scrape(api.client))
    engine.script = lambda _: ["one ", "two", "three"]
    await api.complete(max_tokens=11, stop="hre")
    await api.stream()
    await api.complete(stream="no boolean")
    engine.script = lambda _: ["one ", RequestFailed("broken")]
    await api.complete()
    await api.client.get("/no/such/route/17")
    assert series(await scrape(api.client)) == before
    assert not [name for name, _ in before if name.endswith("_created")]
    labelled = {name for name, labels in before if ("model_name", "fake") in labels}
    assert {name for name, _ in before if name.startswith("unmask_")} == labelled
    assert all(name.startswith(("unmask_", "process_")) for name, _ in before)


async def test_requests_are_timed_and_counted(api, engine):
    engine.script = lambda _: ["one ", "two ", "three"]
    await api.stream(max_tokens=13)
    await api.complete(stop="tw")
    engine.script = lambda _: ["one ", RequestFailed("broken")]
    await api.complete()
    families = await scrape(api.client)
    finished = {reason: value(families, "unmask_requests_finished_total", reason=reason) for reason in FinishReason}
    assert finished == {"length": 1, "stop": 1, "error": 1, "abort": 0}
    for name, count in {
        "time_to_first_block_seconds": 3,
        "inter_block_latency_seconds": 3,
        "time_per_output_token_seconds": 2,
        "request_duration_seconds": 3,
        "request_queue_seconds": 0,
        "request_prompt_tokens": 3,
    }.items():
        assert value(families, f"unmask_{name}_count") == count, name
    assert value(families, "unmask_request_generation_tokens_sum") == 13 + len("one tw") + 4


def refusals(families):
    [family] = [family for name, family in families.items() if name == "unmask_requests_rejected"]
    return {sample.labels["reason"]: sample.value for sample in family.samples}


GOOD = {"json": {"prompt": "ab"}, "headers": {"authorization": "Bearer key"}}


@pytest.mark.parametrize(
    ("reason", "request_"),
    [
        ("unauthorized", {"json": {"prompt": "ab"}}),
        ("unauthorized", {"json": {"prompt": "ab"}, "url": "/no/such/route"}),
        ("too_large", GOOD | {"json": {"prompt": "a" * 1000}}),
        ("too_large", GOOD | {"headers": {"authorization": "Bearer key", **{f"x-{n}": "y" for n in range(100)}}}),
        ("invalid", GOOD | {"json": {"prompt": 5}}),
        ("invalid", GOOD | {"json": {"prompt": "ab", "max_tokens": 500}}),
        ("invalid", GOOD | {"method": "PUT"}),
        ("unknown_model", GOOD | {"json": {"prompt": "ab", "model": "gpt"}}),
        ("unavailable", GOOD),
        (None, GOOD),
        (None, GOOD | {"url": "/no/such/route"}),
        (None, {"url": "/ready", "method": "GET"}),
    ],
)
async def test_refusals_are_counted_by_their_reason(engine, tokenizer, reason, request_):
    settings = build({"served_model_name": ["fake"], "api_key": ["key"], "max_body_bytes": 500})
    app = create_app(cast(EngineLoop, engine), tokenizer, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        before = refusals(await scrape(client))
        engine.accepting = reason != "unavailable" and request_.get("url") != "/ready"
        await client.request(**{"method": "POST", "url": "/v1/completions", **request_})
        after = refusals(await scrape(client))
    assert before == dict.fromkeys(before, 0) | {"queue_full": 23}, "which the engine counts"
    assert {name: count - before[name] for name, count in after.items() if count != before[name]} == (
        {reason: 1} if reason else {}
    )


async def test_answers_are_counted_by_route_and_class(api):
    await api.complete()
    await api.complete(temperature=9)
    await api.client.get("/v1/models/fake")
    await api.client.get("/wp-admin.php")
    for path in sorted(PROBES):
        await api.client.get(path)
    families = await scrape(api.client)
    counted = {
        (sample.labels["handler"], sample.labels["code"]): sample.value
        for sample in families["unmask_http_responses"].samples
    }
    assert {key: count for key, count in counted.items() if count} == {
        ("/v1/completions", "2xx"): 1,
        ("/v1/completions", "4xx"): 1,
        ("/v1/models/{name:path}", "2xx"): 1,
        ("other", "4xx"): 1,
    }
    assert ("/v1/completions", "5xx") in counted
    assert not [handler for handler, _ in counted if handler in PROBES | {"/metrics"}]


@pytest.fixture
def compatible(engine, tokenizer):
    """A client of the same server under vLLM's names."""
    settings = build({"served_model_name": ["fake"], "metrics_compat": "vllm"})
    app = create_app(cast(EngineLoop, engine), tokenizer, settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_vllms_names_are_there_when_asked_for(compatible, api, engine):
    reading = Distribution((1.0, 8.0), (3, 4, 5), 21.5)
    engine.stats = replace(engine.stats, decoding=replace(engine.stats.decoding, step_tokens=reading))
    async with compatible as client:
        await client.post("/v1/completions", json={"prompt": ["ab", "abc"], "max_tokens": 9, "n": 2})
        families = await scrape(client)
    for name, expected in {
        "num_requests_running": 2,
        "num_requests_waiting": 3,
        "iteration_tokens_total_sum": 21.5,
        "kv_cache_usage_perc": 5 / 128,
        "prompt_tokens_total": 5,
        "generation_tokens_total": 28,
        "time_to_first_token_seconds_count": 4,
        "inter_token_latency_seconds_count": 4,
        "request_time_per_output_token_seconds_count": 4,
        "e2e_request_latency_seconds_count": 4,
        "request_params_max_tokens_sum": 36,
        "request_generation_tokens_sum": 28,
        "num_preemptions_total": 6,
        "prefix_cache_queries_total": 90,
        "prefix_cache_hits_total": 64,
        "request_params_n_count": 2,
        "request_params_n_sum": 4,
        "request_max_num_generation_tokens_count": 2,
        "request_max_num_generation_tokens_sum": 14,
    }.items():
        assert value(families, f"vllm:{name}", model_name="fake", engine="0") == expected, name
    assert value(families, "vllm:request_success_total", finished_reason="length") == 4
    waiting = {
        reason: value(families, "vllm:num_requests_waiting_by_reason", reason=reason)
        for reason in ("capacity", "deferred")
    }
    assert waiting == {"capacity": 3, "deferred": 0}
    [config] = families["vllm:cache_config_info"].samples
    sizes = {"block_size": "32", "num_gpu_blocks": "128", "kv_cache_size_tokens": "4096"}
    assert config.labels.items() >= {**sizes, "kv_cache_max_concurrency": "32.0", "cache_dtype": "float32"}.items()
    assert "unmask_requests_running" in families, "beside its own"
    assert not [name for name in await scrape(api.client) if name.startswith("vllm:")]


async def test_vllms_benchmark_derives_the_truth_from_the_diffusion_counters(compatible, engine, llada_tiny, request):
    """Its arithmetic (API of vLLM 0.33): block = positions/steps, and each canvas is one step of committing."""
    real, submission, run = (request.getfixturevalue(name) for name in ("golden_engine", "submission", "run"))
    run(real, submission(gen_length=96, block_length=32, unmask="fixed", steps=24, ignore_eos=True))
    engine.stats = real.stats()
    async with compatible as client:
        families = await scrape(client)
    steps, positions, committed = (
        value(families, f"vllm:diffusion_num_{name}_total")
        for name in ("denoising_steps", "canvas_positions", "committed_tokens")
    )
    block = positions / steps
    canvases = committed / block
    assert (block, canvases, committed) == (32, 3, 96)
    assert (steps - canvases) / canvases == 8
    assert committed / (steps - canvases) == 4


@pytest.fixture
def golden_engine(llada_tiny):
    from engine import EngineConfig, load

    return load(EngineConfig(model=str(llada_tiny)))


@pytest.mark.parametrize(("maximum", "last"), [(1, 1), (2, 2), (3, 5), (128, 200), (4096, 5000), (5000, 5000)])
def test_token_buckets_reach_the_longest_canvas(maximum, last):
    buckets = token_buckets(maximum)
    assert buckets[-1] == last
    assert buckets == sorted(set(buckets))
    assert all(str(bucket)[0] in "125" for bucket in buckets)
