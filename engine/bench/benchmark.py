"""What decoding costs, method by method: the papers' loops (`reference`) and the engine under each cache policy.

All methods run on one model and one shape of canvas, in turns, so that ratios hold on a machine whose speed drifts.
Only measures; the caller decides what the figures are used for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from engine.assemble import assemble, load
from engine.bench.method import BASELINE, METHODS, REFERENCE_DUAL, Method
from engine.bench.timed_run import Turn, Workload, take_turn
from engine.core.config import EngineConfig
from engine.engine import Engine
from engine.execution.choices import choose_device, choose_dtype, enter_device
from engine.models.synthetic import SIZES, random_model

MODEL_SIZES = tuple(SIZES)
"""Names that `bench_decode` takes for a model of random weights."""

Progress = Callable[[int, int, str], None]
"""Called with the number of turns done, the number of all turns, and the method that runs next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFigures:
    """One method's medians. Ratios are above 1 if it is faster than the other method, None if that was not measured."""

    method: str
    batch: int
    rows: int
    """Positions whose hidden states were computed, over all requests."""
    forwards: int
    """Model forwards. One forward of the engine serves many requests."""
    seconds: float
    tokens_per_second: float
    ratio_to_baseline: float | None
    """Median of the rounds' ratios, as is the next field."""
    ratio_to_reference_dual: float | None
    ratio_to_first: float
    """To the first of the methods, likewise."""
    sampled: bool
    """Only some steps, or one request of the batch, were timed; the figures are scaled to the whole workload."""
    peak_memory_bytes: int | None
    """CUDA: the most bytes that tensors took. Linux: highest resident bytes of the process, with interpreter, weights
    and memory that earlier turns have not released. None elsewhere."""
    host_share: float | None
    """Share of the time outside the model's forward (layers and head); None for the reference loops."""
    host_us_per_step: float | None
    """Microseconds that one step of one request takes outside the forward and its scoring: planning, building the
    batch, choosing, counting, writing back. None for the reference loops."""
    first_block_seconds: float | None
    """Seconds until the first block of any request is complete; None for the reference loops."""
    kv_pages: float | None
    """KV pages that all requests together held, the mean over the time of steps; None for the reference loops."""


def bench_decode(
    config: EngineConfig, workload: Workload, methods: Sequence[str] = METHODS, progress: Progress | None = None
) -> list[DecodeFigures]:
    """Figures of each method, in this order. `config.model` is one of `MODEL_SIZES` or a model that `load` takes.

    Raises ConfigError on an unknown method or a model with too short a context, LoadError if there is no such model.
    """
    named = {name: Method.named(name) for name in methods}
    engine = _engine(config, workload)
    turns: dict[str, list[Turn]] = {name: [] for name in named}
    order = [name for _ in range(workload.repeats) for name in turns]
    for done, name in enumerate(order):
        if progress:
            progress(done, len(order), name)
        turns[name].append(take_turn(named[name], engine, workload))
    return [_figures(name, turns, workload) for name in turns]


def _engine(config: EngineConfig, workload: Workload) -> Engine:
    """An engine that runs the whole batch at once, with a KV pool that holds it."""
    pages = workload.batch * -(-workload.length // config.page_size)
    config = replace(config, max_running_requests=workload.batch, kv_cache_tokens=pages * config.page_size)
    if config.model not in SIZES:
        return load(replace(config, max_model_len=workload.length))
    device = choose_device(config)
    enter_device(device)
    model, spec = random_model(config.model, workload.length, choose_dtype(config, device), device)
    return assemble(config, model, spec, Path())


def _figures(method: str, turns: Mapping[str, Sequence[Turn]], workload: Workload) -> DecodeFigures:
    own, first = turns[method], next(iter(turns.values()))

    def ratio_to(other: str) -> float | None:
        if other not in turns:
            return None
        return median(theirs.seconds / ours.seconds for theirs, ours in zip(turns[other], own, strict=True))

    seconds = median(turn.seconds for turn in own)
    peaks = [turn.peak_memory_bytes for turn in own if turn.peak_memory_bytes is not None]
    shares = [turn.host_share for turn in own if turn.host_share is not None]
    host_us = [turn.host_us_per_step for turn in own if turn.host_us_per_step is not None]
    first_blocks = [turn.first_block_seconds for turn in own if turn.first_block_seconds is not None]
    return DecodeFigures(
        method=method,
        batch=workload.batch,
        rows=own[0].rows,
        forwards=own[0].forwards,
        seconds=seconds,
        tokens_per_second=workload.batch * workload.gen / seconds,
        ratio_to_baseline=ratio_to(BASELINE),
        ratio_to_reference_dual=ratio_to(REFERENCE_DUAL),
        ratio_to_first=median(theirs.seconds / ours.seconds for theirs, ours in zip(first, own, strict=True)),
        sampled=own[0].sampled,
        peak_memory_bytes=int(median(peaks)) if peaks else None,
        host_share=median(shares) if shares else None,
        host_us_per_step=median(host_us) if host_us else None,
        first_block_seconds=median(first_blocks) if first_blocks else None,
        kv_pages=own[0].kv_pages,
    )
