"""Histograms of requests' times in seconds and lengths in tokens. `server.observe.observer` reports each block."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from engine import FinishReason
from server.observe.metrics.families import token_buckets
from server.observe.observer import RequestStats

FIRST_BLOCK = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
INTER_BLOCK = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80)


class RequestMetrics:
    """An observer that fills histograms."""

    def __init__(self, registry: CollectorRegistry, model_name: str, max_model_len: int) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...] | list[float]) -> Histogram:
            family = Histogram(f"unmask_{name}", text, ("model_name",), registry=registry, buckets=buckets)
            return family.labels(model_name)

        tokens = token_buckets(max_model_len)
        self._first_block = histogram(
            "time_to_first_block_seconds", "From submission to the first completed block.", FIRST_BLOCK
        )
        self._inter_block = histogram("inter_block_latency_seconds", "From block to block of a request.", INTER_BLOCK)
        self._per_token = histogram(
            "time_per_output_token_seconds", "A request's time after its first block, over its tokens.", PER_TOKEN
        )
        self._whole = histogram("request_duration_seconds", "From submission to the end.", WHOLE)
        self._queue = histogram("request_queue_seconds", "From submission to admission.", QUEUE)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self._generation = histogram("request_generation_tokens", "Tokens handed out to a request.", tokens)
        finished = Counter(
            "unmask_requests_finished",
            "Requests that ended, by reason; abort is a client that hung up, or a server that was stopped.",
            ("model_name", "reason"),
            registry=registry,
        )
        self._finished = {reason: finished.labels(model_name, reason.value) for reason in FinishReason}

    def on_block(self, stats: RequestStats, seconds: float) -> None:
        if stats.first_block != stats.last_block:
            self._inter_block.observe(seconds)
            return
        self._first_block.observe(seconds)
        if stats.queue_seconds is not None:
            self._queue.observe(stats.queue_seconds)

    def on_end(self, stats: RequestStats) -> None:
        assert stats.finish_reason is not None, "told of an end that is none; this is a bug"
        self._finished[stats.finish_reason].inc()
        self._whole.observe(stats.seconds)
        self._prompt.observe(stats.usage.prompt_tokens)
        self._generation.observe(stats.usage.completion_tokens)
        if stats.seconds_per_token is not None:
            self._per_token.observe(stats.seconds_per_token)
