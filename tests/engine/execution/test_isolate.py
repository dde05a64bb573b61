"""One request's fault is that request's end and nobody else's."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import FinishReason
from engine.cache.policies import CACHES, DualCache
from engine.core.errors import DeviceLost
from engine.core.steps.scores import Scores
from engine.execution.isolate import choose, in_halves
from engine.scheduling.faults import Faults
from engine.unmask.policies import UNMASKS, Threshold
from tests.engine.faulty import FaultyRunner, find, outputs, rows_of


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


EVERYBODY, TWO = slice(None), slice(3, 5)
"""Neighbours of a culprit: every kind that does not share its cache, and where the fault is a policy's, two."""


@pytest.mark.parametrize(
    ("beside", "inject", "cause"),
    [
        (EVERYBODY, in_forward(raising), "ValueError: a fault in the forward"),
        (EVERYBODY, in_forward(spoiling), "ArithmeticError: the model's scores are not numbers"),
        (TWO, in_cache(LateDual()), 'KeyError: "a cache policy\'s fault"'),
        (TWO, in_cache(CrookedDual()), "AssertionError: a target without its row"),
        pytest.param(TWO, in_unmask("needs"), "ZeroDivisionError: a fault in needs", marks=pytest.mark.slow),
        (TWO, in_unmask("select"), "ZeroDivisionError: a fault in select"),
        pytest.param(TWO, in_unmask("is_forced"), "ZeroDivisionError: a fault in is_forced", marks=pytest.mark.slow),
        (TWO, in_unmask("block_length"), "ZeroDivisionError: a fault in block_length"),
        (TWO, in_unmask("first block_length"), "ZeroDivisionError: a fault in block_length"),
        (TWO, in_unmask("nothing"), "AssertionError: a step that commits nothing"),
        (TWO, in_unmask("too many"), "ValueError: could not broadcast"),
    ],
)
def test_a_fault_is_one_requests_own(
    engine, crowd, undisturbed, submission, monkeypatch, caplog, beside, inject, cause
):
    """In the midst of a crowd: theirs is, to the last count, what it is without the fault."""
    others = [one for one in crowd[beside] if one.diffusion.cache != "dual"]
    expected = {one.request_id: undisturbed[one.request_id] for one in others}
    culprit = submission("culprit", gen_length=48, cache="dual", unmask="margin", block_length=4)
    inject(monkeypatch, engine)
    by_id = outputs(engine, others[0], culprit, *others[1:])
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
    monkeypatch.setattr("engine.scoring.scores.received", lambda *_: [None])
    [last] = outputs(engine, asked)["culprit"]
    assert last.finish_reason is FinishReason.ERROR
    assert engine.stats().kv_pages_used == 0


def test_several_at_fault_at_once_cost_a_few_forwards(engine, crowd, undisturbed, submission, monkeypatch, caplog):
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
    assert by_id == undisturbed
    [record] = caplog.records
    assert record.getMessage().startswith("failed: request bad-0, bad-1, bad-2: ValueError"), "one cause, one entry"


DEVICE_ERRORS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ValueError("whatever comes of it"),
]


@pytest.mark.parametrize("error", DEVICE_ERRORS, ids=str)
def test_a_lost_device_is_asked_once(engine, crowd, monkeypatch, device, error):
    def fault(_):
        device.lost = True
        raise error

    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, fault))
    for one in crowd:
        engine.submit(engine.new_request(one))
    with pytest.raises(DeviceLost, match=re.escape(str(error))):
        engine.step()
    assert engine.runner.calls == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(...)`"),
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        DEVICE_ERRORS[-1],
    ],
    ids=str,
)
def test_an_error_that_the_device_survives_is_one_plans_own(
    engine, crowd, undisturbed, submission, monkeypatch, device, error
):
    def fault(batch):
        if rows_of(engine, batch, "culprit").any():
            raise error

    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, fault))
    two = crowd[TWO]
    by_id = outputs(engine, *two, submission("culprit"))
    assert by_id.pop("culprit")[-1].finish_reason is FinishReason.ERROR
    assert by_id == {one.request_id: undisturbed[one.request_id] for one in two}


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
    served, results = in_halves(plans, work, faults, short.append)
    fine = [str(n) for n, size in enumerate(sizes) if n not in bad and size <= room]
    assert results == [plan.request.id for plan in served] == fine
    causes = {fault.request.id: fault.cause for fault in faults.take()}
    assert causes.keys() == {str(n) for n in range(len(sizes))} - set(fine)
    assert all(("OutOfMemory" in cause) == (sizes[int(n)] > room) for n, cause in causes.items())
    assert all(rows > room for rows in short)
    assert not faults.take()
