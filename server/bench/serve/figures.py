"""A run's samples as figures: quantiles of users' waiting times, and rates of requests and tokens."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from server.bench.serve.client import Sample
from server.bench.serve.run import LoadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Mean and quantiles of a time, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFigures:
    """The figures of one run. None: there was no sample, or the server does not report it."""

    completed: int
    failed: int
    failures: Mapping[str, int]
    """Number of failures by reason, the most frequent first."""
    interrupted: bool
    seconds: float
    time_to_first_block: Quantiles | None
    """From sending to the first block. A block is a chunk that adds text or tokens, of any number of tokens."""
    time_per_output_token: Quantiles | None
    """From the first block to the end, over the tokens after that block. Only of requests with several blocks."""
    inter_block_latency: Quantiles | None
    """Between two blocks of one answer, over all pairs."""
    end_to_end: Quantiles | None
    prompt_tokens: int | None
    completion_tokens: int
    """Visible tokens: those that clients received."""
    tokens_from: Literal["usage", "chunks"]
    """Whether `usage` or chunks were counted. A chunk counts as one token, but may contain more."""
    tokens_per_second: float
    requests_per_second: float
    blocks_per_request: float | None
    forwards_per_token: float | None
    """Forwards in which requests took part (`usage.diffusion`), over their tokens."""
    rows_per_token: float | None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def summarise(run: LoadResult) -> ServeFigures:
    samples = run.samples
    told = bool(samples) and all(sample.completion_tokens is not None for sample in samples)
    tokens = [_or_zero(sample.completion_tokens) if told else len(sample.blocks) for sample in samples]
    counts = Counter(failure.reason for failure in run.failures)
    return ServeFigures(
        completed=len(samples),
        failed=len(run.failures),
        failures=dict(counts.most_common()),
        interrupted=run.interrupted,
        seconds=run.seconds,
        time_to_first_block=_quantiles(sample.blocks[0] - sample.sent for sample in samples if sample.blocks),
        time_per_output_token=_quantiles(_per_token(samples, tokens)),
        inter_block_latency=_quantiles(b - a for sample in samples for a, b in pairwise(sample.blocks)),
        end_to_end=_quantiles(sample.ended - sample.sent for sample in samples),
        prompt_tokens=_total(samples, lambda sample: sample.prompt_tokens),
        completion_tokens=sum(tokens),
        tokens_from="usage" if told else "chunks",
        tokens_per_second=sum(tokens) / run.seconds,
        requests_per_second=len(samples) / run.seconds,
        blocks_per_request=sum(len(sample.blocks) for sample in samples) / len(samples) if samples else None,
        forwards_per_token=_share(_total(samples, lambda sample: sample.forwards), sum(tokens)),
        rows_per_token=_share(_total(samples, lambda sample: sample.rows), sum(tokens)),
    )


def _per_token(samples: Sequence[Sample], tokens: Sequence[int]) -> Iterable[float]:
    for sample, count in zip(samples, tokens, strict=True):
        later = count - (1 if sample.first_tokens is None else sample.first_tokens)
        if len(sample.blocks) > 1 and later > 0:
            yield (sample.ended - sample.blocks[0]) / later


def _quantiles(seconds: Iterable[float]) -> Quantiles | None:
    values = np.fromiter(seconds, dtype=np.float64)
    if not len(values):
        return None
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return Quantiles(mean=float(values.mean()), p50=float(p50), p90=float(p90), p99=float(p99))


def _total(samples: Sequence[Sample], of: Callable[[Sample], int | None]) -> int | None:
    counts = [of(sample) for sample in samples]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _share(total: int | None, tokens: int) -> float | None:
    return total / tokens if total is not None and tokens else None


def _or_zero(count: int | None) -> int:
    return count or 0
