"""Metric families of the engine's statistics and the answers' token counts, read at each scrape."""

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engine import DecodingStats, EngineLoop
from server.observe.metrics.families import MetricFamilies
from server.observe.observer import TokenCounts
from server.settings.tree import Settings


class EngineMetrics(Collector):
    """The `EngineStats` and `EngineInfo` of one engine."""

    def __init__(
        self, engine: EngineLoop, tokens: TokenCounts, settings: Settings, rejected: Mapping[str, int]
    ) -> None:
        """`rejected`: requests that were refused before they reached the engine, by reason."""
        self._engine = engine
        self._tokens = tokens
        self._settings = settings
        self._rejected = rejected
        self._families = MetricFamilies("unmask_", {"model_name": settings.model_names[0]})

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        make = self._families
        yield from self._state()
        yield make.gauge("requests_running", "Requests that hold KV pages now.", stats.running)
        yield make.gauge("requests_waiting", "Requests that wait to be admitted.", stats.waiting)
        yield make.gauge("requests_stalled", "Requests that wait for KV pages of their open block.", stats.stalled)
        yield make.gauge("kv_pages_used", "KV pages that requests hold now.", stats.kv_pages_used)
        yield make.gauge("kv_pages_capacity", "KV pages in the pool.", stats.kv_pages_total)
        yield make.gauge("batch_rows_capacity", "Rows that a forward may have.", self._engine.info.max_batch_rows)
        yield make.gauge(
            "kv_pages_kept", "KV pages that nobody holds, kept for prompts that begin alike.", stats.kv_pages_kept
        )
        yield make.counter(
            "prompt_tokens", "Tokens of prompts, each once, as `usage` counts them.", self._tokens.prompt
        )
        yield make.counter("generation_tokens", "Tokens of answers, as `usage` counts them.", self._tokens.generation)
        yield make.counter("forwards", "Forwards of the model, each for a whole batch.", stats.forwards)
        rejected = {"queue_full": stats.rejected, **self._rejected}
        yield make.counters("requests_rejected", "Requests refused, by reason.", "reason", rejected)
        yield make.counter("preemptions", "Running requests that had to give their KV pages back.", stats.preemptions)
        yield make.counter(
            "prompt_tokens_looked_up",
            "Prompt tokens that the prefix cache was asked for.",
            stats.prompt_tokens_looked_up,
        )
        yield make.counter("prompt_tokens_found", "Those whose KV it had.", stats.prompt_tokens_found)
        yield make.counter("kv_evictions", "How often `kv_budget` made a request give up KV.", stats.kv_evictions)
        yield make.counter("kv_tokens_evicted", "Tokens whose KV was given up for it.", stats.kv_tokens_evicted)
        yield make.counter(
            "kv_pages_freed", "KV pages that this gave back before requests ended.", stats.kv_pages_freed
        )
        yield make.gauge("relay_pages", "KV pages of ended answers, kept for `relay_from`.", stats.relay_pages)
        yield make.counters(
            "relay_tokens", "Prompt tokens of requests with `relay_from`, by kind.", "kind", stats.relay_tokens
        )
        yield from self._decoding(stats.decoding)

    def _state(self) -> Iterator[Metric]:
        engine, info, make = self._engine, self._engine.info, self._families
        yield make.gauge(
            "engine_heartbeat_age_seconds", "Since the engine's thread last came round.", engine.heartbeat_age
        )
        yield make.gauge("accepting_requests", "1 while new requests are taken, else 0.", engine.accepting)
        yield make.gauge("weights_bytes", "Memory that the model's weights take.", info.weight_bytes)
        yield make.gauge("kv_cache_bytes", "Memory that the KV pool takes.", info.kv_bytes)
        yield make.gauge(
            "kv_bytes_per_token", "Of it, what the keys and values of one token take.", info.kv_bytes / info.kv_tokens
        )
        yield make.info(
            "build_info",
            "What runs here.",
            {"version": version("unmask"), "python_version": platform.python_version()},
        )
        yield make.info(
            "config_info",
            "How it was started.",
            {
                "model": info.model,
                "revision": self._settings.engine.revision or "",
                "family": info.spec.family,
                "device": info.device,
                "dtype": info.dtype,
                "kv_dtype": info.kv_dtype,
                "kv_prune": f"{info.kv_prune:g}",
                "max_model_len": str(info.max_model_len),
                "max_batch_rows": str(info.max_batch_rows),
                "max_running_requests": str(info.max_running_requests),
                "max_queued_requests": str(info.max_queued_requests),
                "page_size": str(info.page_size),
                "quantization": info.quantization,
                "prefix_caching": str(info.shares_prefixes).lower(),
                "default_cache": self._settings.diffusion.cache,
                "default_unmask": self._settings.diffusion.unmask,
                "default_lookahead": "null" if (n := self._settings.diffusion.lookahead) is None else str(n),
            },
        )

    def _decoding(self, stats: DecodingStats) -> Iterator[Metric]:
        make = self._families
        yield make.counter("denoising_steps", "Steps of requests: one for each in a forward.", stats.denoising_steps)
        yield make.counters("rows_computed", "Positions computed, by kind.", "kind", stats.rows)
        yield make.counter("tokens_decoded", "Masks turned into tokens.", stats.tokens_decoded)
        yield make.counter(
            "tokens_forced", "Tokens decoded below their policy's bar: each step decodes one.", stats.tokens_forced
        )
        yield make.counter("tokens_edited", "Decoded tokens that others replaced.", stats.tokens_edited)
        yield make.counters(
            "tokens_discarded", "Tokens decoded and handed to nobody.", "reason", stats.tokens_discarded
        )
        yield make.counter(
            "kv_page_seconds",
            "KV pages held times the seconds of steps: its rate is their mean.",
            stats.kv_page_seconds,
        )
        yield make.counter("blocks", "Blocks completed.", stats.blocks)
        yield make.counter("cache_lookups", "Positions that steps attended to.", stats.cache_lookups)
        yield make.counter("cache_hits", "Of those, positions whose KV was not recomputed.", stats.cache_hits)
        yield make.counter(
            "cache_full_refreshes", "Steps that recomputed all that was visible of a canvas.", stats.full_refreshes
        )
        yield make.histogram("denoising_steps_per_block", "Steps that a block took.", stats.steps_per_block)
        yield make.histogram(
            "tokens_per_forward", "Tokens that a request gained from a forward.", stats.tokens_per_forward
        )
        yield make.histogram("commit_confidence", "Probability of tokens when they were decoded.", stats.confidence)
        yield make.histogram("batch_requests", "Requests in a forward.", stats.batch_requests)
        yield make.histogram("batch_rows", "Rows of a forward.", stats.batch_rows)
        yield make.histograms(
            "step_seconds",
            "A step's time: in the forward and scoring, and on the host beside them.",
            "part",
            {"forward": stats.forward_seconds, "host": stats.host_seconds},
        )
        yield make.histogram(
            "device_seconds",
            "Of a step's forward and scoring, the time by the device's own clock.",
            stats.device_seconds,
        )
