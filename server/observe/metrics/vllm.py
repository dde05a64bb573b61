"""This engine's metrics under vLLM's names, for dashboards, autoscalers and benchmarks that were made for vLLM.

Names, labels and buckets are those of vLLM 0.33; metrics without a counterpart here are left out. Off unless
`--metrics-compat vllm` is given, because names with colons are against Prometheus' conventions.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engine import EngineLoop, FinishReason
from server.observe.metrics.families import MetricFamilies, token_buckets
from server.observe.observer import RequestStats, TokenCounts

ENGINE = "0"
"""Index of the engine, which vLLM has as a label."""
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)


class VllmMetrics(Collector):
    """Both an observer, for vLLM's histograms, and a collector of the engine's statistics."""

    def __init__(self, registry: CollectorRegistry, engine: EngineLoop, tokens: TokenCounts, model_name: str) -> None:
        self._engine = engine
        self._tokens = tokens
        self._families = MetricFamilies("vllm:", {"model_name": model_name, "engine": ENGINE})

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            family = Histogram(f"vllm:{name}", text, ("model_name", "engine"), registry=registry, buckets=buckets)
            return family.labels(model_name, ENGINE)

        lengths = token_buckets(engine.info.max_model_len)
        self._first_token = histogram("time_to_first_token_seconds", "To the first completed block.", FIRST_TOKEN)
        self._inter_token = histogram("inter_token_latency_seconds", "From block to block.", PER_TOKEN)
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "After the first block, over all tokens.", PER_TOKEN
        )
        self._whole = histogram("e2e_request_latency_seconds", "From submission to the end.", WHOLE)
        self._queue = histogram("request_queue_time_seconds", "From submission to admission.", WHOLE)
        self._inference = histogram("request_inference_time_seconds", "From admission to the end.", WHOLE)
        self._prefill = histogram("request_prefill_time_seconds", "From admission to the first block.", WHOLE)
        self._decode = histogram("request_decode_time_seconds", "From the first block to the end.", WHOLE)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self._generation = histogram("request_generation_tokens", "Tokens handed out to a request.", lengths)
        self._longest = histogram("request_max_num_generation_tokens", "Of a prompt's longest answer.", lengths)
        self._max_tokens = histogram("request_params_max_tokens", "`max_tokens` of a request.", lengths)
        self._n = histogram("request_params_n", "`n` of a prompt.", CHOICES)
        success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=registry,
        )
        self._success = {reason: success.labels(model_name, ENGINE, reason.value) for reason in FinishReason}
        registry.register(self)

    def on_block(self, stats: RequestStats, seconds: float) -> None:
        if stats.first_block != stats.last_block:
            self._inter_token.observe(seconds)
        else:
            self._first_token.observe(seconds)

    def on_end(self, stats: RequestStats) -> None:
        assert stats.finish_reason is not None, "told of an end that is none; this is a bug"
        assert stats.ended is not None
        self._success[stats.finish_reason].inc()
        self._whole.observe(stats.seconds)
        self._prompt.observe(stats.usage.prompt_tokens)
        self._generation.observe(stats.usage.completion_tokens)
        if not stats.siblings.num_running:
            self._n.observe(stats.siblings.n)
            self._longest.observe(stats.siblings.longest)
        self._max_tokens.observe(stats.submission.sampling.max_tokens)
        if stats.seconds_per_token is not None:
            self._per_token.observe(stats.seconds_per_token)
        if stats.queue_seconds is not None and stats.admitted is not None and stats.first_block is not None:
            self._queue.observe(stats.queue_seconds)
            self._inference.observe(stats.ended - stats.admitted)
            self._prefill.observe(stats.first_block - stats.admitted)
            self._decode.observe(stats.ended - stats.first_block)

    def collect(self) -> Iterator[Metric]:
        stats, info, make = self._engine.stats, self._engine.info, self._families
        decoding = stats.decoding
        yield make.gauge("num_requests_running", "Requests that hold KV pages now.", stats.running)
        yield make.gauge("num_requests_waiting", "Requests that wait to be admitted.", stats.waiting)
        yield make.gauges(
            "num_requests_waiting_by_reason",
            "What they wait for: all for pages or a place.",
            "reason",
            {"capacity": stats.waiting, "deferred": 0},
        )
        yield make.gauge(
            "kv_cache_usage_perc", "Share of the KV pages in use.", stats.kv_pages_used / stats.kv_pages_total
        )
        yield make.info(
            "cache_config_info",
            "The KV pool.",
            {
                "block_size": str(info.page_size),
                "num_gpu_blocks": str(info.kv_tokens // info.page_size),
                "cache_dtype": info.kv_dtype,
                "enable_prefix_caching": str(info.shares_prefixes),
                "kv_cache_memory_bytes": str(info.kv_bytes),
                "kv_cache_size_tokens": str(info.kv_tokens),
                "kv_cache_max_concurrency": str(info.kv_tokens / info.max_model_len),
            },
        )
        yield make.counter("prompt_tokens", "Tokens of prompts, each once.", self._tokens.prompt)
        yield make.counter("generation_tokens", "Tokens of answers.", self._tokens.generation)
        yield make.counter("num_preemptions", "Running requests that gave their KV pages back.", stats.preemptions)
        yield make.counter("prefix_cache_queries", "Prompt tokens looked up.", stats.prompt_tokens_looked_up)
        yield make.counter("prefix_cache_hits", "Prompt tokens whose KV was there.", stats.prompt_tokens_found)
        yield make.counters(
            "admission_rejections", "Requests refused.", "reason", {"max_num_queued_reqs": stats.rejected}
        )
        yield make.histogram(
            "iteration_tokens_total", "Tokens of a step: decoded, and of prompts in their first.", decoding.step_tokens
        )
        # vLLM counts a step that commits a finished canvas. Here, committing takes none, so each block adds one. What
        # `vllm bench serve` derives from these counters (steps per canvas, tokens per step) is then right.
        yield make.counter(
            "diffusion_num_denoising_steps",
            "Denoising steps, and one for each completed block.",
            decoding.denoising_steps + decoding.blocks,
        )
        yield make.counter(
            "diffusion_num_canvas_positions",
            "Positions of the open block, summed over those steps.",
            decoding.open_block_positions + decoding.block_positions,
        )
        yield make.counter("diffusion_num_committed_tokens", "Positions of completed blocks.", decoding.block_positions)
