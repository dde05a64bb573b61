"""One method decoding one workload, timed: a loop of the papers (`reference`) or this engine with one cache.

Runs one method and measures its cost; `engine.bench.benchmark` decides which methods are compared, and how.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from engine.bench.method import Method
from engine.bench.reference import decode, fixed
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.submission import Submission
from engine.engine import Engine
from engine.execution.batch import Batch
from engine.execution.graphs import Replay
from engine.execution.runner import ModelOutput, Runner
from engine.kernels.kv.formats import stored_dtype
from engine.kernels.kv.pool import KVPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is decoded, and how often. Raises ConfigError on numbers that do not divide."""

    prompt: int = 896
    """Tokens of each prompt."""
    gen: int = 1024
    """Tokens of each canvas after its prompt."""
    block: int = 32
    """Tokens of a block."""
    batch: int = 1
    """Requests in flight; a reference loop serves them one after the other."""
    tokens_per_step: int = 4
    """Tokens that each step decodes; the baseline decodes one, as LLaDA's sampler does."""
    repeats: int = 3
    """Rounds in which every method has its turn; figures are medians over them."""
    sample_steps: int = 4
    """Steps that are timed where all steps compute the same rows (no cache); the rest is extrapolated."""
    sample_blocks: int = 0
    """Blocks that are timed of a single request where all compute the same rows (dual cache); 0 is all of them."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1 and name != "sample_blocks":
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.gen % self.block or self.block % self.tokens_per_step:
            raise ConfigError(
                f"gen {self.gen} must be a multiple of block {self.block}, and that of tokens_per_step "
                f"{self.tokens_per_step}"
            )

    @property
    def length(self) -> int:
        """Prompt and canvas of one request."""
        return self.prompt + self.gen

    def sampled_steps(self, cache: str, lookahead: int | None = None) -> int | None:
        """How many steps of one request are timed as a sample of all; None if all steps are timed."""
        if lookahead is not None:
            return None  # more of the canvas is visible at each block
        if cache == "dual" and self.sample_blocks and self.batch == 1:
            return self.sample_blocks * (self.block // self.tokens_per_step)
        return self.sample_steps if cache == "none" else None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn of one method cost, scaled to the whole workload if it was a sample."""

    rows: int
    forwards: int
    seconds: float
    sampled: bool
    host_share: float | None = None
    """Share of the time outside the model's forward."""
    host_us_per_step: float | None = None
    """Microseconds that one step of one request takes outside the forward and its scoring."""
    first_block_seconds: float | None = None
    """Seconds until the first block of any request is complete."""
    kv_pages: float | None = None
    """KV pages that all requests together held, the mean over the time of steps."""
    peak_memory_bytes: int | None = None


class TimedRunner(Runner):
    """A runner that sums the seconds of its forwards, with the head and what is fused into it."""

    seconds = 0.0

    def forward(self, batch: Batch | Replay) -> ModelOutput:
        with self._timed():
            return super().forward(batch)

    def head(self, hidden: Tensor) -> Tensor:
        with self._timed():
            return super().head(hidden)

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        with self._timed():
            return super().propose(hidden, mask_id)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = now(self.device)
        yield
        self.seconds += now(self.device) - started


def take_turn(method: Method, engine: Engine, workload: Workload) -> Turn:
    """Runs one method with the model of `engine`, and measures its cost."""
    device = engine.runner.device
    prompts = random_prompts(workload, engine.info.spec.vocab_size)
    _reset_peak_memory(device)
    if method.where == "reference":
        turn = _run_reference(method, engine, workload, prompts[0])
    else:
        turn = _run_engine(method, engine, workload, prompts)
    return replace(turn, peak_memory_bytes=_peak_memory(device))


def random_prompts(workload: Workload, vocab_size: int) -> list[list[int]]:
    """The same ones every time."""
    rng = random.Random(0)
    return [[rng.randrange(vocab_size) for _ in range(workload.prompt)] for _ in range(workload.batch)]


def _run_reference(method: Method, engine: Engine, workload: Workload, prompt: list[int]) -> Turn:
    """One request of the batch, or a sample of its steps."""
    tokens_per_step = 1 if method.is_baseline else workload.tokens_per_step
    steps, spec = workload.gen // tokens_per_step, engine.info.spec
    assert spec.mask_id is not None, "a model of `synthetic` has a mask"
    started = now(engine.runner.device)
    decoded = decode(
        engine.runner.model,
        prompt,
        gen_length=workload.gen,
        block_length=workload.block,
        mask_id=spec.mask_id,
        cache=cast(Literal["none", "prefix", "dual"], method.cache),
        rule=fixed(workload.block, workload.block // tokens_per_step),
        shift=spec.shift,
        max_forwards=workload.sampled_steps(method.cache),
    )
    seconds = now(engine.runner.device) - started
    share = decoded.forwards / (steps * workload.batch)
    return Turn(round(decoded.rows / share), steps * workload.batch, seconds / share, share < 1)


def _run_engine(method: Method, engine: Engine, workload: Workload, prompts: list[list[int]]) -> Turn:
    """All requests, submitted at once, or a sample of their steps.

    Uses a separate engine with a new pool, so that the memory is this method's.
    """
    shared, info = engine.runner, engine.info
    geometry, device = shared.model.config, shared.device
    pool = KVPool(
        geometry.num_layers,
        info.kv_tokens,
        geometry.num_kv_heads,
        geometry.head_dim,
        stored_dtype(method.kv_dtype, shared.model.embed.dtype),
        device,
    )
    runner = TimedRunner(shared.model, pool, device, shared.kernel)
    if shared.graphs:
        runner.capture(shared.graphs.shapes)
    engine = Engine(runner, info)
    steps = workload.gen // workload.tokens_per_step
    for number, prompt in enumerate(prompts):
        engine.submit(engine.new_request(submission_of(str(number), prompt, method, steps, workload)))
    limit, first_block = workload.sampled_steps(method.cache, method.lookahead), None
    started = now(device)
    while engine.request_ids and engine.stats().forwards != limit:
        if engine.step() and first_block is None:
            first_block = now(device) - started
    seconds = now(device) - started
    stats, share = engine.stats(), 1.0
    if engine.request_ids and workload.batch == 1:
        share = stats.forwards / steps
    elif engine.request_ids:  # no cache: all rows are alike, however many requests a step serves
        share = stats.rows_computed / (workload.length * steps * workload.batch)
    host_share, decoding = 1 - runner.seconds / seconds, stats.decoding
    host_us = 1e6 * decoding.host_seconds.total / decoding.denoising_steps
    return Turn(
        round(stats.rows_computed / share),
        round(stats.forwards / share),
        seconds / share,
        share < 1,
        host_share,
        host_us,
        first_block,
        decoding.kv_page_seconds / (decoding.forward_seconds.total + decoding.host_seconds.total),
    )


def submission_of(request_id: str, prompt: list[int], method: Method, steps: int, workload: Workload) -> Submission:
    """A request that decodes its canvas in this number of steps, each of as many tokens."""
    return Submission(
        request_id=request_id,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=workload.gen, ignore_eos=True),
        diffusion=DiffusionParams(
            cache=method.cache,
            unmask="fixed",
            steps=steps,
            block_length=workload.block,
            lookahead=method.lookahead,
        ),
    )


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    return None
