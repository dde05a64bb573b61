"""One request's fault is that request's end and nobody else's; memory that runs out costs time, not requests."""

import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import FinishReason, scheduler
from engine.cache import CACHES, DualCache
from engine.errors import DeviceLost
from engine.faults import Faults
from engine.isolate import choose, in_parts, is_device_lost, is_memory_short
from engine.plan import Scores
from engine.runner import Runner
from engine.unmask import UNMASKS, Threshold

CROWD = [
    {"cache": "dual", "unmask": "threshold", "threshold": 0.3, "block_length": 8},
    {"cache": "none", "unmask": "fixed", "block_length": 16, "temperature": 0.8},
    {"cache": "d2", "unmask": "threshold", "threshold": 0.3, "current_k": 8, "block_length": 16},
    {"cache": "prefix", "unmask": "factor", "block_length": 8, "temperature": 1.2},
    {"cache": "window", "unmask": "cad", "initial_block_length": 12},
    {"cache": "none", "unmask": "dream", "steps": 20},
    {"cache": "dual", "unmask": "entropy_bound", "block_length": 8, "holes": [(2, 20), (9, 28)], "stop_ids": {5}},
]


class FaultyRunner(Runner):
    """Asks `fault` before each forward, which may raise or return a bool [rows] of those whose logits are NaN."""

    def __init__(self, runner, fault):
        super().__init__(runner.model, runner.pool, runner.device, runner.kernel)
        self.fault = fault
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        spoilt = self.fault(batch)
        answer = super().forward(batch)
        if spoilt is not None:
            answer.logits.hidden[spoilt[batch.logit_rows]] = torch.nan
        return answer


@pytest.fixture
def crowd(submission):
    return [
        submission(f"good-{n}", prompt=list(range(20 + n, 34 + n)), gen_length=48, **row) for n, row in enumerate(CROWD)
    ]


def outputs(engine, *asked):
    """Request id -> its outputs, with everything that was counted."""
    for one in asked:
        engine.submit(engine.new_request(one))
    by_id = {one.request_id: [] for one in asked}
    while engine.request_ids:
        for output in engine.step():
            by_id[output.request_id].append(output)
    return by_id


def find(engine, request_id):
    return next((request for request in engine.scheduler.running if request.id == request_id), None)


def rows_of(engine, batch, request_id):
    """bool [rows] of the batch that are this request's, by the slots that it holds."""
    request = find(engine, request_id)
    return torch.isin(batch.slots, torch.from_numpy(request.slots)) if request else torch.zeros_like(batch.slots).bool()


class LateDual(DualCache):
    """Sound until its third step."""

    def plan(self, request):
        if request.forwards == 3:
            raise KeyError("a cache policy's fault")
        return super().plan(request)


class CrookedDual(DualCache):
    """Scores a target whose row it does not compute."""

    def plan(self, request):
        plan = super().plan(request)
        return replace(plan, rows=np.setdiff1d(plan.rows, plan.targets)) if request.forwards == 3 else plan


class FaultyThreshold(Threshold):
    """Its method of this name raises, or selects nothing at all, from its third step on."""

    def __init__(self, method):
        self.method = method

    def _fail_in(self, method, request):
        if method == self.method and request.forwards >= 3:
            raise ZeroDivisionError(f"a fault in {method}")

    def needs(self, request):
        self._fail_in("needs", request)
        return super().needs(request)

    def block_length(self, request):
        self._fail_in("block_length", request)
        if self.method == "first block_length":
            raise ZeroDivisionError("a fault in block_length")
        return super().block_length(request)

    def select(self, request, scores):
        self._fail_in("select", request)
        chosen = super().select(request, scores)
        if request.forwards < 3:
            return chosen
        return {"nothing": chosen & False, "too many": np.append(chosen, True)}.get(self.method, chosen)

    def is_forced(self, request, scores):
        self._fail_in("is_forced", request)
        return super().is_forced(request, scores)


def raising(engine, request_id):
    def fault(batch):
        request = find(engine, request_id)
        if request and request.forwards >= 3 and rows_of(engine, batch, request_id).any():
            raise ValueError("a fault in the forward")

    return fault


def spoiling(engine, request_id):
    def fault(batch):
        request = find(engine, request_id)
        return rows_of(engine, batch, request_id) if request and request.forwards >= 3 else None

    return fault


def in_forward(fault):
    return lambda monkeypatch, engine: monkeypatch.setattr(
        engine, "runner", FaultyRunner(engine.runner, fault(engine, "culprit"))
    )


def in_cache(policy):
    return lambda monkeypatch, _: monkeypatch.setitem(CACHES, "dual", policy)


def in_unmask(method):
    return lambda monkeypatch, _: monkeypatch.setitem(UNMASKS, "margin", FaultyThreshold(method))


@pytest.mark.parametrize(
    ("inject", "cause"),
    [
        (in_forward(raising), "ValueError: a fault in the forward"),
        (in_forward(spoiling), "ArithmeticError: the model's scores are not numbers"),
        (in_cache(LateDual()), 'KeyError: "a cache policy\'s fault"'),
        (in_cache(CrookedDual()), "AssertionError: a target without its row"),
        (in_unmask("needs"), "ZeroDivisionError: a fault in needs"),
        (in_unmask("select"), "ZeroDivisionError: a fault in select"),
        (in_unmask("is_forced"), "ZeroDivisionError: a fault in is_forced"),
        (in_unmask("block_length"), "ZeroDivisionError: a fault in block_length"),
        (in_unmask("first block_length"), "ZeroDivisionError: a fault in block_length"),
        (in_unmask("nothing"), "AssertionError: a step that commits nothing"),
        (in_unmask("too many"), "ValueError: could not broadcast"),
    ],
)
def test_a_fault_is_one_requests_own(engine, crowd, submission, monkeypatch, caplog, inject, cause):
    """In the midst of a crowd of every kind: theirs is, to the last count, what it is without the fault."""
    others = [one for one in crowd if one.diffusion.cache != "dual"]
    expected = outputs(engine, *others)
    culprit = submission("culprit", gen_length=48, cache="dual", unmask="margin", block_length=4)
    inject(monkeypatch, engine)
    by_id = outputs(engine, *others[:3], culprit, *others[3:])
    *_, last = by_id.pop("culprit")
    assert (last.finish_reason, last.token_ids) == (FinishReason.ERROR, ())
    assert last.usage.forwards <= 4
    assert by_id == expected
    assert engine.stats().kv_pages_used == 0
    assert engine.stats().finished[FinishReason.ERROR] == 1
    [record] = caplog.records
    assert record.getMessage().startswith(f"failed: request culprit: {cause}")
    assert "Traceback" in record.getMessage()


def test_a_choice_holds_what_belongs_together(engine, submission):
    """Of three, the one in the middle has no numbers: what is left is each one's own plan, scores and tokens."""
    asked = [{"unmask": "threshold", "threshold": 1.0}, {"unmask": "fixed"}, {"unmask": "threshold", "threshold": 0.0}]
    for number, row in enumerate(asked):
        engine.submit(engine.new_request(submission(number, gen_length=8, block_length=8, **row)))
    plans = engine.scheduler.schedule()
    said = zip(plans, (1.0, np.nan, 2.0), strict=True)
    scores = [Scores(plan.targets, np.full(8, 5), np.full(8, log_odds)) for plan, log_odds in said]
    faults = Faults()
    first, last = choose(plans, scores, faults)
    assert (first.plan, first.scores, first.chosen.sum(), first.is_forced) == (plans[0], scores[0], 1, True)
    assert (last.plan, last.scores, last.chosen.sum(), last.is_forced) == (plans[2], scores[2], 8, False)
    assert [fault.request for fault in faults.take()] == [plans[1].request]


def test_nobody_waits_for_an_answer_that_could_not_be_put_together(engine, submission, monkeypatch):
    """The last block is full, and what should be told with it is lost."""
    asked = submission("culprit", gen_length=8, block_length=8)
    asked = replace(asked, sampling=replace(asked.sampling, logprobs=1))
    monkeypatch.setattr("engine.scores.received", lambda *_: [None])
    [last] = outputs(engine, asked)["culprit"]
    assert last.finish_reason is FinishReason.ERROR
    assert engine.stats().kv_pages_used == 0


def test_several_at_fault_at_once_cost_a_few_forwards(engine, crowd, submission, monkeypatch, caplog):
    expected = outputs(engine, *crowd)
    culprits = [submission(f"bad-{n}", cache="none", gen_length=32, unmask="fixed") for n in range(3)]

    def fault(batch):
        if any(rows_of(engine, batch, bad.request_id).any() for bad in culprits):
            raise ValueError("a fault in the forward")

    runner = FaultyRunner(engine.runner, fault)
    monkeypatch.setattr(engine, "runner", runner)
    for one in (crowd[0], culprits[0], *crowd[1:4], culprits[1], *crowd[4:], culprits[2]):
        engine.submit(engine.new_request(one))
    first = engine.step()
    assert {output.request_id for output in first if output.finish_reason} == {bad.request_id for bad in culprits}
    assert runner.calls <= 1 + 3 * 2 * 4, "a path of halves to each of three in ten"
    by_id = {one.request_id: [output for output in first if output.request_id == one.request_id] for one in crowd}
    while engine.request_ids:
        for output in engine.step():
            by_id[output.request_id].append(output)
    assert by_id == expected
    [record] = caplog.records
    assert record.getMessage().startswith("failed: request bad-0, bad-1, bad-2: ValueError"), "one cause, one entry"


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory"),
    MemoryError(),
]


def at_most(rows, error, seen):
    def fault(batch):
        seen.append(len(batch.ids))
        if len(batch.ids) > rows:
            raise error

    return fault


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_costs_nobody_anything(engine, crowd, monkeypatch, caplog, error):
    expected = outputs(engine, *crowd)
    seen = []
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, at_most(130, error, seen)))
    assert outputs(engine, *crowd) == expected
    assert max(seen) > 130, "it has happened"
    assert sum(rows > 130 for rows in seen) <= 3 < len(seen), "the lower budget is remembered"
    assert engine.stats().kv_pages_used == 0
    assert all("out of memory with" in record.getMessage() for record in caplog.records)


def test_the_whole_budget_is_tried_again_after_a_while(engine, crowd, monkeypatch):
    monkeypatch.setattr(scheduler, "SPARING_STEPS", 6)
    seen = []
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, at_most(130, OUT_OF_MEMORY[0], seen)))
    outputs(engine, *crowd)
    over = [i for i, rows in enumerate(seen) if rows > 130]
    assert len(over) > 3
    assert any(later - earlier > 6 for earlier, later in pairwise(over))


def test_only_a_request_that_cannot_run_alone_fails_for_memory(engine, crowd, submission, monkeypatch):
    expected = outputs(engine, *crowd)
    seen = []
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, at_most(130, OUT_OF_MEMORY[0], seen)))
    by_id = outputs(engine, *crowd, submission("huge", prompt=[9] * 100, gen_length=64))
    [last] = by_id.pop("huge")
    assert last.finish_reason is FinishReason.ERROR
    assert by_id == expected
    assert engine.stats().kv_pages_used == 0


def test_a_single_request_has_a_second_try_once_memory_is_released(engine, submission, run, monkeypatch):
    expected = run(engine, submission())
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, lambda _: None))
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(engine.runner.calls))

    def fault(_):
        if not released:
            raise OUT_OF_MEMORY[0]

    engine.runner.fault = fault
    assert run(engine, submission()) == expected
    assert released == [1]


def test_so_has_each_of_a_batch_that_was_split(engine, submission, monkeypatch):
    asked = [submission(number, prompt=[number + 1] * 9) for number in range(2)]
    expected = outputs(engine, *asked)
    failed = set()

    def fault(batch):
        key = tuple(batch.slots[:1].tolist()), len(batch.ids)
        if key not in failed:
            failed.add(key)
            raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, fault))
    assert outputs(engine, *asked) == expected


def test_no_tensor_of_a_failed_attempt_is_kept_while_it_is_tried_again(engine, crowd, monkeypatch):
    """Else an out-of-memory step would be retried with its memory still taken."""
    made = WeakSet()

    def fault(batch):
        assert not made, "what the attempt before has made"
        hidden = torch.empty(len(batch.ids))
        made.add(hidden)
        if len(hidden) > 130:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, fault))
    assert all(ends[-1].finish_reason is not FinishReason.ERROR for ends in outputs(engine, *crowd).values())


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: device-side assert triggered"), RuntimeError("CUDA error: unknown error")],
)
def test_a_lost_device_is_asked_once(engine, crowd, monkeypatch, error):
    def fault(_):
        raise error

    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, fault))
    for one in crowd:
        engine.submit(engine.new_request(one))
    with pytest.raises(DeviceLost, match=re.escape(str(error))):
        engine.step()
    assert engine.runner.calls == 1


def test_errors_are_what_torch_calls_them():
    assert all(is_memory_short(error) and not is_device_lost(error) for error in OUT_OF_MEMORY)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_memory_short(caught.value)
    for error in (ValueError("out of memory"), AssertionError(), RuntimeError("shapes do not match")):
        assert not is_memory_short(error)
        assert not is_device_lost(error)


@given(
    sizes=st.lists(st.integers(1, 9), max_size=20),
    bad=st.sets(st.integers(0, 19)),
    room=st.integers(1, 200),
)
def test_whatever_fails_the_rest_is_served_in_order(sizes, bad, room):
    """Plans of these many rows, of which some raise, and any batch of more rows than there is room for."""
    plans = [SimpleNamespace(request=SimpleNamespace(id=str(n)), rows=np.arange(size)) for n, size in enumerate(sizes)]
    short = []

    def work(part):
        rows = sum(len(plan.rows) for plan in part)
        if rows > room:
            raise torch.OutOfMemoryError(str(rows))
        if any(int(plan.request.id) in bad for plan in part):
            raise ValueError("bad")
        return [plan.request.id for plan in part]

    faults = Faults()
    served, results = in_parts(plans, work, faults, short.append)
    fine = [str(n) for n, size in enumerate(sizes) if n not in bad and size <= room]
    assert results == [plan.request.id for plan in served] == fine
    causes = {fault.request.id: fault.cause for fault in faults.take()}
    assert causes.keys() == {str(n) for n in range(len(sizes))} - set(fine)
    assert all(("OutOfMemory" in cause) == (sizes[int(n)] > room) for n, cause in causes.items())
    assert all(rows > room for rows in short)
    assert not faults.take()
