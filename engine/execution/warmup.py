"""First steps, before an engine is ready: they check that it can compute, and show the compiler typical shapes.

Real requests run in a real scheduler, and nothing of them is kept: no other request holds slots of the pool yet. Knows
what takes memory in a step, but no threads and no clients.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from engine.core.config import ModelSpec
from engine.core.constraint import Constraint
from engine.core.errors import CapacityError, LoadError
from engine.core.params import MAX_LOGPROBS, DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.execution.budget import CLASSES
from engine.execution.graphs import Shape
from engine.execution.isolate import choose, is_memory_short
from engine.execution.runner import Runner
from engine.execution.step import prepare
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.unmask.policies import UNMASKS, needs

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all; capturing graphs is one of them."""

COMPILED_FOR, ROWS = (8, 2), 32
"""Requests in each step that is for the compiler, and rows of each request. The compiler takes the first shapes that it
sees for typical."""

SHORTEST_DRAFT = 3
"""Positions of the shortest canvas with a draft: a known token, a target, and one that only verifying rows say."""


def warm_up(
    runner: Runner,
    spec: ModelSpec,
    *,
    max_batch_rows: int,
    page_size: int,
    is_compiled: bool,
    shapes: Sequence[Shape] = (),
    progress: Progress | None = None,
) -> None:
    """Runs the first steps of an engine. If it is compiled and there is no `progress` to call, it writes to the log.

    Dense parts are compiled for any number of rows, and for a single one; where drafts go through an adapter, with it,
    too. Then a CUDA graph is captured for each of the `shapes`. On CUDA one step is of several requests, whose slots
    are no slice, and the last three are the largest possible: one with every option that takes memory, one with a
    constraint beside, and one with none, whose targets are scored apart; of a model without a mask there is one kind.
    What does not fit beside the graphs fails now, libraries allocate their workspaces, and every kernel is compiled.
    Raises LoadError if a step cannot be computed, CapacityError if memory runs out; without its graphs an engine is
    merely slower.
    """
    begun = time.perf_counter()
    if is_compiled and not progress:
        logger.info("compiling; this takes a minute or so unless the compiler finds it in its cache")
    pages = runner.pool.dump // page_size
    room, rows = min(max_batch_rows, pages * page_size), min(ROWS, spec.max_model_len)
    costly = _costly if spec.mask_id is not None else _renewed
    typical = [[costly(min(rows, room))]]
    if runner.device.type == "cuda" and min(room, pages) > 1:
        typical.append([costly(min(rows, room // 2))] * 2)  # slots of one request are neighbours: kernels take a slice
    if is_compiled:
        typical = [[costly(min(rows, room // many))] * many for many in COMPILED_FOR if many <= min(room, pages)]
        typical.append([costly(1)])
        if spec.has_draft_adapter and min(rows, room) >= SHORTEST_DRAFT:
            typical += [[_drafted(min(rows, room))], [_drafted(SHORTEST_DRAFT)]]
    largest = []
    if runner.device.type == "cuda":
        canvases = _largest(spec.max_model_len, room, page_size)
        kinds: Sequence[Callable[[int], Submission]] = (_renewed,)
        if spec.mask_id is not None:
            kinds = (_costly, partial(_constrained, constraint=any_text(spec)), _plain)
        largest = [[submission(canvas) for canvas in canvases] for submission in kinds]

    def take(submissions: Sequence[Submission]) -> None:
        scheduler = Scheduler(PagePool(pages, page_size), max_batch_rows=max_batch_rows, max_running=len(submissions))
        for submission in submissions:
            request = Request.new(submission, spec)
            if UNMASKS[submission.diffusion.unmask].drafts:
                request.masked[request.answer_start] = False  # which has no draft: it would take a step before
            scheduler.add(request)
        _try(runner, scheduler, spec)

    steps: list[Callable[[], None]] = [partial(take, submissions) for submissions in typical]
    if shapes:
        steps.append(partial(runner.capture, shapes))
    steps += [partial(take, submissions) for submissions in largest]
    for done, step in enumerate(steps):
        if progress:
            progress(done, len(steps))
        step()
    if is_compiled and not progress:
        logger.info("compiled in %.1f s", time.perf_counter() - begun)


@torch.inference_mode()
def _try(runner: Runner, scheduler: Scheduler, spec: ModelSpec) -> None:
    plans = scheduler.schedule()
    try:
        page_size = scheduler.pool.page_size
        step = prepare(
            plans,
            needs(plans),
            mask_id=spec.mask_id,
            page_size=page_size,
            dump=runner.pool.dump,
            device=runner.device,
            graphs=runner.graphs,
        )
        step.launch(runner)
        choose(plans, step.read(), scheduler.faults)
    except Exception as error:
        logger.debug("a first step has failed", exc_info=True)
        rows = sum(len(plan.rows) for plan in plans)
        if is_memory_short(error):
            raise CapacityError(
                f"memory runs out in a step of {rows} rows: lower max_batch_rows, max_model_len or memory_fraction, "
                "which leaves more beside weights and KV pool"
            ) from error
        raise LoadError(f"a first step of {rows} rows fails: {type(error).__name__}: {_first_line(error)}") from error
    if faults := scheduler.faults.take():
        raise LoadError(f"a first step fails: {faults[0].cause}; are the weights broken, or the dtype too narrow?")


def _largest(max_model_len: int, room: int, page_size: int) -> list[int]:
    """Lengths of canvases that fill a step, as far as the pool has pages for them."""
    whole, rest = divmod(room, -(-max_model_len // page_size) * page_size)
    return [max_model_len] * whole + [min(rest, max_model_len)] * (rest > 0)


def _plain(canvas: int) -> Submission:
    """One open block of `canvas` positions, of which only the best tokens are asked for."""
    return Submission(
        request_id="warm-up",
        prompt_ids=(),
        sampling=SamplingParams(max_tokens=canvas),
        diffusion=DiffusionParams(unmask="threshold", block_length=canvas),
    )


def _costly(canvas: int) -> Submission:
    """The same with the options that take most memory in scoring."""
    return Submission(
        request_id="warm-up",
        prompt_ids=(),
        sampling=SamplingParams(
            max_tokens=canvas, temperature=0.8, top_p=0.9, repetition_penalty=1.2, logprobs=MAX_LOGPROBS
        ),
        diffusion=DiffusionParams(unmask="entropy", block_length=canvas),
    )


def _renewed(canvas: int) -> Submission:
    """One open block of random tokens."""
    return Submission(
        request_id="warm-up",
        prompt_ids=(),
        sampling=SamplingParams(max_tokens=canvas, repetition_penalty=1.2, logprobs=MAX_LOGPROBS),
        diffusion=DiffusionParams(unmask="renoise", block_length=canvas),
    )


def _drafted(canvas: int) -> Submission:
    """A draft in one open block, whose first token is known: of all `canvas` positions but this one and the last.

    One token is asked for; a canvas is whole blocks.
    """
    return Submission(
        request_id="warm-up",
        prompt_ids=(),
        sampling=SamplingParams(max_tokens=1),
        diffusion=DiffusionParams(unmask="linear_spec", block_length=canvas),
    )


def _constrained(canvas: int, constraint: Constraint) -> Submission:
    """The costly one under a constraint."""
    costly = _costly(canvas)
    return replace(costly, sampling=replace(costly.sampling, constraint=constraint))


def any_text(spec: ModelSpec) -> Constraint:
    """A constraint that every text satisfies, with as many classes as are planned for."""
    count = min(CLASSES, spec.vocab_size) - 1  # of classes, without that of ends
    classes = np.arange(spec.vocab_size) % (count - 1) + 1
    classes[list(spec.never_drawn)] = 0
    classes[list(spec.eos_ids)] = count
    step = np.full((3, count + 1), 2, np.int32)
    step[0, 1:count] = 0
    step[:2, count] = 1
    return Constraint.of_steps(classes, step, distance=np.zeros(1, np.int32), accepts=np.ones(1, np.bool_))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
