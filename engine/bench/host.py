"""What a step costs the host: the step of a crowd of requests without its forward and its scoring, timed by part.

No model is loaded. Scores are made up, outside the clock: the host's work depends on how many they are, not on what
they say. Times are CPU time of this thread: other work on the machine disturbs them little.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from engine.core.config import ModelSpec
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Scores
from engine.execution.isolate import choose
from engine.execution.step import prepare
from engine.scheduling.faults import Faults
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.tally import Tally
from engine.unmask.policies import needs

HOST_PARTS = ("schedule", "lay out", "choose", "commit", "tally")
"""The parts of a step that are timed, in their order."""
PROMPT, CANVAS, BLOCK, PAGE = 896, 1024, 32, 32
"""Tokens. The shape of docs/performance.md."""
SPEC = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset({47, 48}), max_model_len=PROMPT + CANVAS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFigures:
    """One crowd. All times are medians over its steps."""

    requests: int
    steps: int
    microseconds: Mapping[str, float]
    """For each of `HOST_PARTS`: microseconds of one step, for one of its requests."""

    @property
    def total(self) -> float:
        """Microseconds of all parts together, for a step of one request."""
        return sum(self.microseconds.values())


class Crowd:
    """Requests that all run, with the `dual` cache and the `threshold` policy, after their first step."""

    def __init__(self, size: int, *, is_traced: bool = False) -> None:
        """`is_traced`: somebody watches each request (`TracedStep`)."""
        self.tally = Tally()
        self._scheduler = Scheduler(
            PagePool(size * -(-SPEC.max_model_len // PAGE), PAGE),
            max_batch_rows=size * SPEC.max_model_len,
            max_running=size,
        )
        self._rng = np.random.default_rng(0)
        for number in range(size):
            submission = Submission(
                request_id=str(number),
                prompt_ids=[1] * PROMPT,
                sampling=SamplingParams(max_tokens=CANVAS, ignore_eos=True),
                diffusion=DiffusionParams(cache="dual", unmask="threshold", block_length=BLOCK),
                is_traced=is_traced,
            )
            self._scheduler.add(Request.new(submission, SPEC))
        self.step({})

    def step(self, seconds: dict[str, float]) -> None:
        """One step of all requests. Adds the seconds of each part."""
        faults = Faults()
        with _timed(seconds, "schedule"):
            plans = self._scheduler.schedule()
        with _timed(seconds, "lay out"):
            prepare(plans, needs(plans), mask_id=SPEC.mask_id, page_size=PAGE, dump=0, device=torch.device("cpu"))
        scores = [self._scores(plan) for plan in plans]
        with _timed(seconds, "choose"):
            choices = choose(plans, scores, faults)
        with _timed(seconds, "tally"):
            self.tally.chosen(choices)
        with _timed(seconds, "commit"):
            outputs = self._scheduler.commit(choices)
            self._scheduler.take_traced()
        with _timed(seconds, "tally"):
            self.tally.completed(outputs)

    def _scores(self, plan: StepPlan) -> Scores:
        """One token, with random log-odds: about one target in 70 passes the threshold."""
        count = len(plan.targets)
        return Scores(plan.targets, np.full(count, 5), self._rng.normal(size=count))


def bench_host(
    crowds: Sequence[int],
    steps: int,
    progress: Callable[[int, int, int], None] = lambda *_: None,
    *,
    is_traced: bool = False,
) -> list[HostFigures]:
    """Times `steps` steps of crowds of so many requests, all of them watched if `is_traced`.

    `progress` is called with the steps done, those there are, and the size of the crowd at work. Raises ConfigError for
    numbers below 1, and for more steps than a request has.
    """
    if not crowds or min(crowds) < 1 or not 1 <= steps < CANVAS:
        raise ConfigError(f"requests are 1 or more, steps 1 to {CANVAS - 1}")
    figures = []
    for number, size in enumerate(crowds):
        crowd, timed = Crowd(size, is_traced=is_traced), list[dict[str, float]]()
        for step in range(steps):
            progress(number * steps + step, len(crowds) * steps, size)
            timed.append(dict.fromkeys(HOST_PARTS, 0.0))
            crowd.step(timed[-1])
        each = {part: 1e6 / size * median(seconds[part] for seconds in timed) for part in HOST_PARTS}
        figures.append(HostFigures(requests=size, steps=steps, microseconds=each))
    return figures


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.thread_time()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.thread_time() - begun
