"""The batching engine, one step at a time: token ids in, blocks of token ids out.

Knows requests, the scheduler and the runner; refuses to know threads, text and HTTP (see `engine.loop`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.attention import KVPool
from engine.batch import build
from engine.cache import CACHES
from engine.config import EngineConfig, ModelSpec
from engine.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from engine.models import describe, load_model
from engine.models.weights import Progress, locate
from engine.pages import PagePool
from engine.plan import StepPlan
from engine.request import FinishReason, Output, Request, SamplingParams, Submission, canvas_length
from engine.runner import Runner, choose_device, choose_dtype, kv_pool_pages, set_threads
from engine.scheduler import Scheduler
from engine.scores import score
from engine.unmask import UNMASKS, select

MIN_BATCH_ROWS = 2048
"""Default row budget: enough for a long refresh with many blocks beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What was loaded, for people: the start-up banner, `/v1/models`."""

    model: str
    folder: Path
    spec: ModelSpec
    device: str
    dtype: str
    num_parameters: int
    weight_bytes: int
    kv_tokens: int
    """Capacity of the KV pool."""
    kv_bytes: int
    page_size: int
    max_model_len: int
    max_batch_rows: int
    max_running_requests: int
    max_queued_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """One reading of every gauge and counter. Counters run from the engine's start."""

    running: int
    """Requests that hold pages."""
    waiting: int
    """Requests accepted and not yet running."""
    kv_pages_used: int
    kv_pages_total: int
    forwards: int
    """Model forwards, each for a whole batch."""
    rows_computed: int
    """Positions whose hidden states were computed."""
    prompt_tokens: int
    generated_tokens: int
    """Tokens handed out."""
    finished: Mapping[FinishReason, int]
    rejected: int
    """Requests refused for want of a place in the queue."""


class Engine:
    """Serves many requests with one model. Not thread-safe: one thread submits, steps and aborts.

    `new_request` alone may be called from any thread: it reads only what never changes.
    """

    def __init__(self, runner: Runner, info: EngineInfo) -> None:
        self.runner = runner
        self.info = info
        self.scheduler = Scheduler(
            PagePool(info.kv_tokens // info.page_size, info.page_size),
            max_batch_rows=info.max_batch_rows,
            max_running=info.max_running_requests,
        )
        self._forwards = self._rows_computed = self._prompt_tokens = self._generated_tokens = 0
        self._finished = Counter(dict.fromkeys(FinishReason, 0))

    def new_request(self, submission: Submission) -> Request:
        """A request that is sure to be served. Raises InvalidRequest with the name of the field at fault."""
        _check_prompt(submission.prompt_ids, self.info.spec)
        _check_sampling(submission.sampling)
        _check_diffusion(submission)
        _check_length(submission, self.info.max_model_len)
        return Request.new(submission, self.info.spec)

    def submit(self, request: Request) -> None:
        """Queues a request made by `new_request`."""
        self._prompt_tokens += request.prompt_len
        self.scheduler.add(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Output | None:
        """Ends a request now and frees its pages; None if it has ended already."""
        output = self.scheduler.abort(request_id, reason)
        if output:
            self._finished[reason] += 1
        return output

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """One forward for everyone whose turn it is; returns the blocks that it completed."""
        plans = self.scheduler.schedule()
        if not plans:
            return []
        logits = self.runner.forward(build(plans, self.runner.device))
        scores = score(logits, plans, self.info.spec.mask_id)
        outputs = self.scheduler.commit(plans, scores, select(plans, scores))
        self._count(plans, outputs)
        return outputs

    @property
    def request_ids(self) -> list[str]:
        """Everyone here, running or waiting."""
        return [request.id for request in (*self.scheduler.running, *self.scheduler.waiting)]

    def stats(self, *, incoming: int = 0, rejected: int = 0) -> EngineStats:
        """A reading, with requests that a caller holds in front of `submit` or has refused."""
        pool = self.scheduler.pool
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + incoming,
            kv_pages_used=pool.num_pages - pool.num_free,
            kv_pages_total=pool.num_pages,
            forwards=self._forwards,
            rows_computed=self._rows_computed,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            finished=dict(self._finished),
            rejected=rejected,
        )

    def _count(self, plans: Sequence[StepPlan], outputs: Sequence[Output]) -> None:
        self._forwards += 1
        self._rows_computed += sum(len(plan.rows) for plan in plans)
        self._generated_tokens += sum(len(output.token_ids) for output in outputs)
        self._finished.update(output.finish_reason for output in outputs if output.finish_reason)


def load(config: EngineConfig, progress: Progress | None = None) -> Engine:
    """The engine that a config describes. Blocks for as long as the weights take.

    Raises LoadError if the checkpoint cannot be served, CapacityError if it does not fit, ConfigError on settings that
    contradict each other or the machine.
    """
    device = choose_device(config)
    dtype = choose_dtype(config, device)
    folder = locate(config.model, config.revision)
    description = describe(folder)
    spec, geometry = description.spec, description.geometry
    max_model_len = config.max_model_len or spec.max_model_len
    if max_model_len > spec.max_model_len:
        raise ConfigError(f"max_model_len is {max_model_len}, but the model's own limit is {spec.max_model_len}")
    max_batch_rows = config.max_batch_rows or max(MIN_BATCH_ROWS, max_model_len)
    if max_batch_rows < max_model_len:
        raise ConfigError(
            f"max_batch_rows is {max_batch_rows}: a refresh of a canvas is indivisible, so it must be at least "
            f"max_model_len, {max_model_len}"
        )
    set_threads(config, geometry)
    model = load_model(folder, description, dtype, device, progress)
    pages = kv_pool_pages(config, geometry, dtype, device, max_model_len)
    pool = KVPool(
        geometry.num_layers, pages * config.page_size, geometry.num_kv_heads, geometry.head_dim, dtype, device
    )
    runner = Runner(model, pool, device)
    return Engine(
        runner,
        EngineInfo(
            model=config.model,
            folder=folder,
            spec=spec,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            num_parameters=runner.num_parameters,
            weight_bytes=runner.weight_bytes,
            kv_tokens=pages * config.page_size,
            kv_bytes=pool.num_bytes,
            page_size=config.page_size,
            max_model_len=max_model_len,
            max_batch_rows=max_batch_rows,
            max_running_requests=config.max_running_requests,
            max_queued_requests=config.max_queued_requests,
        ),
    )


def _check_prompt(prompt_ids: Sequence[int], spec: ModelSpec) -> None:
    if not prompt_ids:
        raise InvalidRequest("The prompt is empty; it needs at least one token.", "prompt")
    if not (min(prompt_ids) >= 0 and max(prompt_ids) < spec.vocab_size):
        wrong = next(token for token in prompt_ids if not 0 <= token < spec.vocab_size)
        raise InvalidRequest(f"Token id {wrong} is out of vocabulary: ids are 0 to {spec.vocab_size - 1}.", "prompt")


def _check_sampling(sampling: SamplingParams) -> None:
    _check_at_least("max_tokens", sampling.max_tokens, 1)
    if not 0.0 <= sampling.temperature <= 2.0:
        raise InvalidRequest(f"temperature is {sampling.temperature}; it must lie in [0, 2].", "temperature")


def _check_diffusion(submission: Submission) -> None:
    diffusion = submission.diffusion
    _check_name("diffusion.cache", diffusion.cache, CACHES)
    _check_name("diffusion.unmask", diffusion.unmask, UNMASKS)
    _check_at_least("diffusion.block_length", diffusion.block_length, 1)
    if not 0.0 <= diffusion.threshold <= 1.0:
        raise InvalidRequest(f"threshold is {diffusion.threshold}; it must lie in [0, 1].", "diffusion.threshold")
    if not 0.0 < diffusion.factor < float("inf"):
        raise InvalidRequest(f"factor is {diffusion.factor}; it must be positive and finite.", "diffusion.factor")
    if diffusion.steps is not None:
        blocks = canvas_length(submission.sampling, diffusion) // diffusion.block_length
        if diffusion.steps < blocks:
            raise InvalidRequest(
                f"steps is {diffusion.steps}, but the canvas has {blocks} blocks and each takes at least one step.",
                "diffusion.steps",
            )


def _check_length(submission: Submission, max_model_len: int) -> None:
    prompt, canvas = len(submission.prompt_ids), canvas_length(submission.sampling, submission.diffusion)
    if prompt + canvas > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {prompt + canvas} "
            f"tokens: {prompt} in the prompt and a canvas of {canvas} (max_tokens {submission.sampling.max_tokens} in "
            f"blocks of {submission.diffusion.block_length}).",
            "prompt" if prompt >= max_model_len else "max_tokens",
        )


def _check_name(param: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise InvalidRequest(f"{param} is {name!r}; it must be one of {', '.join(known)}.", param)


def _check_at_least(param: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidRequest(f"{param.rpartition('.')[2]} is {value}; it must be at least {least}.", param)
