"""What constraints cost a step: a crowd of constrained requests in a scheduler, whose logits are made up.

No model is loaded. Times are CPU time of the calling thread, which runs torch's kernels too if it is the only one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from engine.core.arrays import Floats
from engine.core.config import ModelSpec
from engine.core.constraint import Constraint
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.scores import Scores
from engine.execution.isolate import choose
from engine.kernels.transfer import Upload
from engine.scheduling.faults import Faults
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scoring import slices
from engine.scoring.constrained.posterior import Constrained
from engine.scoring.constrained.tables import TableStore
from engine.unmask.policies import needs

CONSTRAINT_PARTS = ("before the logits", "reduction", "behind the logits")
"""The parts of a step that are timed, in their order. The second one is the device's."""
BLOCK, EACH, PAGE = 32, 4, 32
"""Positions of a block, and tokens that each step decodes."""
STEPS = BLOCK // EACH
"""Steps that are timed: those of one whole block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintFigures:
    """One crowd at one temperature."""

    requests: int
    temperature: float
    milliseconds: Mapping[str, float]
    """For each of `CONSTRAINT_PARTS`: the mean over a block's steps, for all requests together."""
    worst: Mapping[str, float]
    """The same of the step that takes longest."""


class ConstrainedCrowd:
    """Requests that decode under constraints, `EACH` tokens a step, after the first step of a block."""

    def __init__(self, constraints: Sequence[Constraint], size: int, temperature: float, logits: Tensor) -> None:
        """The constraints go round. logits [some, vocab] stand for those of as many targets, time and again."""
        self._logits, self._tables = logits, TableStore(torch.device("cpu"))
        vocab = logits.shape[1]
        stops = np.flatnonzero(constraints[0].classes == constraints[0].num_classes - 1).tolist()
        self._spec = ModelSpec(
            family="toy", vocab_size=vocab, mask_id=vocab - 1, eos_ids=frozenset(stops), max_model_len=1024
        )
        self._scheduler = Scheduler(PagePool(size * 1024 // PAGE, PAGE), max_batch_rows=size * 1024, max_running=size)
        for number in range(size):
            constraint = constraints[number % len(constraints)]
            tokens = max(4 * BLOCK, constraint.least_tokens)
            sampling = SamplingParams(max_tokens=tokens, temperature=temperature, seed=number, constraint=constraint)
            diffusion = DiffusionParams(cache="none", unmask="fixed", steps=-(-tokens // EACH), block_length=BLOCK)
            submission = Submission(request_id=str(number), prompt_ids=[1], sampling=sampling, diffusion=diffusion)
            self._scheduler.add(Request.new(submission, self._spec))

    def step(self) -> dict[str, float]:
        """One step of all requests -> CPU seconds of each part."""
        seconds = dict.fromkeys(CONSTRAINT_PARTS, 0.0)
        before, reduction, behind = CONSTRAINT_PARTS
        plans = self._scheduler.schedule()
        asked, upload = needs(plans), Upload(torch.device("cpu"))
        scores = [Scores(plan.targets, plan.targets, np.zeros(len(plan.targets))) for plan in plans]
        with _timed(seconds, before):
            constrained = Constrained(plans, asked, self._spec.mask_id, upload, self._tables)
            targets = list(slices.target_slices(plans, asked))
            parts = [constrained.slice(some) for some in targets]
            upload.send()
        found: list[tuple[Request, dict[str, Floats]]] = []
        for number, (some, part) in enumerate(zip(targets, parts, strict=True)):
            logits = self._logits.roll(number, 0)[: sum(len(plan.targets) for plan in some.plans)]
            if part:
                with _timed(seconds, reduction), torch.inference_mode():
                    reduced = part.reduced(logits, part.unedited(logits), self._spec.mask_id)
                    found += part.split([columns.numpy() for columns in reduced])
        with _timed(seconds, before):
            constrained.lay_out()
        with _timed(seconds, behind):
            scores = constrained.applied(scores, found)
        self._scheduler.commit(choose(plans, scores, Faults()))
        return seconds


def bench_constraints(
    constraints: Sequence[Constraint],
    requests: int,
    temperatures: Sequence[float],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[ConstraintFigures]:
    """Times a block of requests under these constraints, which are of one vocabulary, once for each temperature.

    `progress` is called with the steps done and those there are. Raises ConfigError without constraints or requests.
    """
    if not constraints or requests < 1:
        raise ConfigError("there must be a constraint and a request")
    torch.set_num_threads(1)
    rows = min(slices.TARGETS_AT_ONCE, requests * BLOCK)
    logits = torch.randn(rows, len(constraints[0].classes), generator=torch.Generator().manual_seed(0)).mul_(3)
    for one in constraints:
        one.groups  # noqa: B018 - worked out once for each constraint, and kept
    figures = []
    for number, temperature in enumerate(temperatures):
        crowd, timed = ConstrainedCrowd(constraints, requests, temperature, logits), []
        for step in range(STEPS):
            progress(number * STEPS + step, len(temperatures) * STEPS)
            timed.append(crowd.step())
        each = {part: [1e3 * seconds[part] for seconds in timed] for part in CONSTRAINT_PARTS}
        mean, worst = ({part: how(each[part]) for part in each} for how in (fmean, max))
        figures.append(ConstraintFigures(requests=requests, temperature=temperature, milliseconds=mean, worst=worst))
    return figures


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.thread_time()
    yield
    seconds[part] += time.thread_time() - begun
