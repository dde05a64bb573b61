"""Every parameter at its bounds: a step of a long canvas takes its host no longer than a few of an ordinary request.

Lines and calls, against those of a request with defaults, and memory: the same on every machine, however busy. A loop
over a canvas shows in the ones, and what is worked out of all of it at once in the other.
"""

import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import engine.scoring.edits
from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.core.params import (
    INT64,
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASED,
    MAX_BLOCK,
    MAX_LOGPROB_IDS,
    MAX_STEPS,
    MAX_STOP_IDS,
)
from engine.core.ranges import Ge, Le
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.execution.isolate import choose
from engine.scheduling.checks.submission import check
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.tally import Tally
from engine.scoring.edits import edits
from engine.unmask.dream import dream_schedule
from engine.unmask.policies import effective, needs
from tests.engine.automata import automaton
from tests.engine.scored import build, score
from tests.engine.toys import FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS

CONTEXT, PROMPT, VOCAB = 4096, 64, 1100
ROOM = CONTEXT - PROMPT
SPEC = ModelSpec(
    family="toy", vocab_size=VOCAB, mask_id=VOCAB - 1, eos_ids=frozenset({VOCAB - 2}), max_model_len=CONTEXT
)
TIMES = 6
"""As much work for each target as of a request with defaults; the most is about three times as much."""
MOST_BYTES = 512 * CONTEXT
"""Of memory in a step; torch's own is not seen. A table of the canvas by the vocabulary, or by itself, takes more."""
HUGE = 10**30

SAMPLING = {
    "max_tokens": [1, ROOM],
    "temperature": [0, 2],
    "top_p": [1e-300, 1],
    "top_k": [0, INT64 - 1],
    "min_p": [0, 1],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "repetition_penalty": [1e-300, 1e300],
    "logit_bias": [tuple((token, sign * 100.0) for token in range(MAX_BIASED)) for sign in (-1, 1)],
    "allowed_ids": [frozenset({5}), frozenset(range(VOCAB))],
    "bad_words": [
        tuple((number, 5) for number in range(MAX_BAD_WORDS)),
        tuple((5,) * (number % 7 + 2) for number in range(MAX_BAD_WORDS)),
        ((5,) * MAX_BAD_WORD_TOKENS,),
    ],
    "min_tokens": [0, ROOM],
    "seed": [-INT64, INT64 - 1],
    "stop_ids": [frozenset(range(MAX_STOP_IDS))],
    "ignore_eos": [False, True],
    "logprobs": [0, 20],
    "logprob_ids": [(), (VOCAB - 1,) * MAX_LOGPROB_IDS],
    "constraint": [automaton(VOCAB, [dict.fromkeys(range(VOCAB - 2), 0)], [0], [VOCAB - 2])],
}
DIFFUSION = {
    "cache": FULL_ATTENTION_CACHES,
    "unmask": FULL_ATTENTION_UNMASKS,
    "block_length": [1, MAX_BLOCK],
    "steps": [1, MAX_STEPS],
    "denoising_steps": [1, MAX_STEPS],
    "threshold": [0, 1],
    "factor": [1e-300, 1e300],
    "gamma": [0, 1e300],
    "alg": ["entropy", "maskgit_plus", "topk_margin", "origin"],
    "alg_temp": [0, 1e300],
    "eps": [0, 1 - 2**-24],
    "lookahead": [0, None, HUGE],
    "refresh_before": [0, HUGE],
    "refresh_after": [0, HUGE],
    "prompt_refresh": [0, 1, HUGE],
    "current_k": [1, HUGE],
    "rollout_p": [0, 1],
    "sigma": [0.01, 1e6],
    "inflate_w": [0, HUGE],
    "initial_block_length": [1, MAX_BLOCK],
    "min_block_length": [1, MAX_BLOCK],
    "max_block_length": [1, MAX_BLOCK],
    "initial_steps": [1, MAX_STEPS],
    "max_steps": [1, MAX_STEPS],
    "confidence_method": ["softmax", "entropy"],
    "kv_budget": [16, MAX_BLOCK],
    "kv_buffer": [1, MAX_BLOCK],
    "kv_score": ["rkv", "attention", "recent", "random"],
    "kv_lambda": [0, 1],
    "kv_sink": [0, MAX_BLOCK],
    "guidance": ["posterior", "model"],
    "relay_recompute": [0, 1],
}
EDITS = {"editing_threshold", "max_post_steps", "num_to_transfer"}
DRAFTS = {"causal_first", "draft_threshold", "draft_adapter"}
NOISE = {"max_denoising_steps", "entropy_bound", "t_min", "t_max", "stability_threshold", "confidence_threshold"}
BLOCK_CAUSAL_ALONE = {"sub_block_length"} | EDITS | DRAFTS | NOISE
"""A model that attends in both directions refuses them, or the policy that they are for, or does not read them."""
BESIDE = {
    "steps": {"unmask": "dream"},
    "denoising_steps": {"unmask": "low_confidence_dynamic"},
    "factor": {"unmask": "factor"},
    "gamma": {"unmask": "entropy_bound"},
    "alg": {"unmask": "dream", "steps": MAX_STEPS},
    "alg_temp": {"unmask": "dream"},
    "eps": {"unmask": "dream", "steps": MAX_STEPS},
    "lookahead": {"cache": "prefix"},
    "refresh_before": {"cache": "window"},
    "refresh_after": {"cache": "delayed"},
    "prompt_refresh": {"cache": "delayed"},
    "current_k": {"cache": "d2"},
    "rollout_p": {"cache": "d2"},
    "sigma": {"unmask": "certainty_threshold"},
    "inflate_w": {"cache": "d2"},
    "initial_block_length": {"unmask": "cad"},
    "min_block_length": {"unmask": "cad", "max_block_length": MAX_BLOCK},
    "max_block_length": {"unmask": "cad", "min_block_length": 1},
    "initial_steps": {"unmask": "cad", "max_steps": MAX_STEPS},
    "max_steps": {"unmask": "cad", "initial_steps": 1},
    "confidence_method": {"unmask": "cad"},
    **{key: {"kv_budget": 16} for key in ("kv_buffer", "kv_score", "kv_lambda")},
    "kv_sink": {"kv_budget": MAX_BLOCK},
    "constraint": {"ignore_eos": False},
    "logprob_ids": {"logprobs": 0},
    "min_tokens": {"stop_ids": frozenset(range(MAX_STOP_IDS))},
}
"""With what each of them matters."""


class Meter:
    """Lines of Python and calls of C's functions, and the most bytes that are taken at once, within its blocks."""

    def __init__(self):
        self.work = self.bytes = 0

    def _call(self, _frame, event, _argument):
        self.work += event == "c_call"

    def _line(self, _frame, event, _argument):
        self.work += event == "line"
        return self._line

    @contextmanager
    def running(self):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        sys.setprofile(self._call)
        sys.settrace(self._line)
        try:
            yield
        finally:
            sys.settrace(None)
            sys.setprofile(None)
        self.bytes = max(self.bytes, tracemalloc.get_traced_memory()[1] - before)


@pytest.fixture(scope="module", autouse=True)
def traced():
    """The process's first step loads the kernels, whichever test it is in."""
    tracemalloc.start()
    Steps({}, {}).cost()
    yield
    tracemalloc.stop()


class Steps:
    """One request on its way, with made-up logits."""

    def __init__(self, sampling, diffusion):
        rng = np.random.default_rng(0)
        submission = effective(
            Submission(
                request_id="r",
                prompt_ids=rng.integers(0, VOCAB - 2, PROMPT).tolist(),
                sampling=SamplingParams(**{"max_tokens": ROOM, "ignore_eos": True, **sampling}),
                diffusion=DiffusionParams(**diffusion),
            )
        )
        check(submission, SPEC)
        self.scheduler = Scheduler(PagePool(CONTEXT // 32, 32), max_batch_rows=CONTEXT, max_running=1)
        self.scheduler.add(Request.new(submission, SPEC))

    @torch.inference_mode()
    def cost(self):
        """Work for each target, and bytes, in one step without the model; None once the request has ended."""
        meter, faults = Meter(), self.scheduler.faults
        with meter.running():
            plans = self.scheduler.schedule()
        if not plans:
            return None
        [plan] = plans
        # The best token is always another: nothing ends early, and what is decoded differs.
        logits = torch.randn(len(plan.targets), VOCAB, generator=torch.Generator().manual_seed(plan.request.forwards))
        importance = [torch.rand(plan.request.canvas_end)] if plan.rollout else []
        is_judged = plan.eviction and plan.eviction.weight is not None
        retention = [torch.rand(len(plan.eviction.candidates))] if is_judged else []
        with meter.running():
            build(plans, logits.device, 32)
            choices = choose(plans, score(logits, plans, SPEC.mask_id, needs(plans), importance, retention), faults)
            Tally().chosen(choices)
            self.scheduler.commit(choices)
        assert not faults.take()
        return meter.work / max(len(plan.targets), 32), meter.bytes


def costs(sampling, diffusion):
    """Of the second step, since the first computes the canvas; of the first where there is no other."""
    asked = Steps(sampling, diffusion)
    first = asked.cost()
    return asked.cost() or first


@pytest.fixture(scope="module")
def plain(traced):
    return costs({}, {})[0]


POLICIES = ("cache", "unmask")
CASES = [
    pytest.param(
        name,
        value,
        where,
        id=f"{name}-{number}",
        marks=[] if name in POLICIES or value == values[-1] else [pytest.mark.slow],
    )
    for where, table in enumerate((SAMPLING, DIFFUSION))
    for name, values in table.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("name", "value", "where"), CASES)
def test_no_parameter_makes_a_step_long(plain, name, value, where):
    params = [{}, {}]
    params[where] = {**BESIDE.get(name, {}), name: value}
    work, taken = costs(*params)
    assert work < TIMES * plain
    assert taken < MOST_BYTES


@pytest.mark.parametrize(("params", "table"), [(SamplingParams, SAMPLING), (DiffusionParams, DIFFUSION)])
def test_every_parameter_is_in_the_table_with_its_bounds(params, table):
    assert set(table) == {field.name for field in fields(params)} - BLOCK_CAUSAL_ALONE
    for name in table:
        hint = get_type_hints(params, include_extras=True)[name]
        for part in (hint, *get_args(hint)):
            for bound in getattr(part, "__metadata__", ()):
                if isinstance(bound, Ge | Le):
                    assert (bound.ge if isinstance(bound, Ge) else bound.le) in table[name], name


def long_request(canvas, **sampling):
    submission = Submission(
        request_id="r",
        prompt_ids=[1] * (canvas - 256),
        sampling=SamplingParams(max_tokens=256, **sampling),
        diffusion=DiffusionParams(block_length=256),
    )
    spec = ModelSpec(family="toy", vocab_size=50_000, mask_id=49_999, eos_ids=frozenset({49_998}), max_model_len=32_768)
    request = Request.new(submission, spec)
    request.ids[: canvas - 256] = np.random.default_rng(0).integers(0, 49_998, canvas - 256)
    return StepPlan(request, np.arange(canvas), np.full(canvas, canvas), request.targets)


def test_penalties_of_a_long_canvas_are_not_sorted(monkeypatch):
    """The same lines for 32,768 tokens as for 512, none of which sorts: a table of the vocabulary is filled."""
    short, long = (long_request(canvas, repetition_penalty=1.2, frequency_penalty=0.5) for canvas in (512, 32_768))
    taken = []
    for plan in (short, short, long):  # the first of a process does more
        meter = Meter()
        with meter.running():
            edits([plan])
        taken.append(meter.work)
    assert taken[2] == taken[1]
    sorting = ("sort", "argsort", "unique", "lexsort", "partition", "topk")
    for module, name in product((np, torch, torch.Tensor), sorting):
        monkeypatch.setattr(module, name, None, raising=False)
    edits([long])


def test_an_edit_is_worked_out_once_a_step_in_however_many_parts(monkeypatch):
    plan = Steps({"frequency_penalty": 1.0}, {"block_length": MAX_BLOCK}).scheduler.schedule()[0]
    worked_out, one_edit = [], engine.scoring.edits._edit
    monkeypatch.setattr(engine.scoring.edits, "_edit", lambda plan: worked_out.append(plan) or one_edit(plan))
    score(torch.randn(len(plan.targets), VOCAB), [plan], SPEC.mask_id)
    assert len(plan.targets) > 15 * 256
    assert len(worked_out) == 1


def test_a_schedule_is_worked_out_once_for_each_of_many_requests():
    """More distinct ones than a small cache would hold, each asked for in every step."""
    asked = [(32, MAX_STEPS, number / 1000) for number in range(300)]
    first = [dream_schedule(*one) for one in asked]
    misses = dream_schedule.cache_info().misses
    assert all(dream_schedule(*one) is schedule for one, schedule in zip(asked, first, strict=True))
    assert dream_schedule.cache_info().misses == misses
