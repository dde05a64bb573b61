"""Memory that runs out costs time, not requests."""

from itertools import pairwise
from weakref import WeakSet

import pytest
import torch

from engine import FinishReason
from engine.execution.isolate import is_memory_short
from engine.scheduling import scheduler
from tests.golden.through_engine import engine_of

from .faulty import FaultyRunner, outputs
from .test_block_causal import conversation

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


@pytest.mark.parametrize("error", [OUT_OF_MEMORY[0], OUT_OF_MEMORY[3]], ids=lambda error: type(error).__name__)
def test_out_of_memory_costs_nobody_anything(engine, crowd, undisturbed, monkeypatch, caplog, error):
    seen = []
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, at_most(130, error, seen)))
    assert outputs(engine, *crowd) == undisturbed
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


def test_only_a_request_that_cannot_run_alone_fails_for_memory(engine, crowd, undisturbed, submission, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "runner", FaultyRunner(engine.runner, at_most(130, OUT_OF_MEMORY[0], seen)))
    by_id = outputs(engine, *crowd, submission("huge", prompt=[9] * 100, gen_length=64))
    [last] = by_id.pop("huge")
    assert last.finish_reason is FinishReason.ERROR
    assert by_id == undisturbed
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
        key = int(batch.ids[0]), len(batch.ids)
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


def test_errors_are_what_torch_calls_them():
    assert all(is_memory_short(error) for error in OUT_OF_MEMORY)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_memory_short(caught.value)
    for error in (ValueError("out of memory"), AssertionError(), RuntimeError("shapes do not match")):
        assert not is_memory_short(error)


def test_a_prompt_that_can_be_computed_in_parts_is_smaller_next_time(sdar_tiny):
    """Down to what fits; the answer is what it is with all memory."""
    prompt = [number % 250 for number in range(200)]
    asked = conversation("long", prompt, max_tokens=12)
    expected = outputs(engine_of(sdar_tiny), asked)["long"]
    engine, seen = engine_of(sdar_tiny), []
    engine.runner = FaultyRunner(engine.runner, at_most(60, OUT_OF_MEMORY[0], seen))
    made = outputs(engine, asked)["long"]
    assert [output.token_ids for output in made] == [output.token_ids for output in expected]
    assert made[-1].finish_reason is FinishReason.LENGTH
    assert sum(rows > 60 for rows in seen) <= 4


def test_a_lowered_budget_is_never_less_than_a_block(sdar_tiny):
    engine, seen = engine_of(sdar_tiny), []
    engine.runner = FaultyRunner(engine.runner, lambda batch: seen.append(len(batch.ids)))
    engine.scheduler.lower_budget(5)
    assert outputs(engine, conversation("long", list(range(200)), max_tokens=8))["long"][-1].finish_reason
    assert max(seen) == 4, "the model's block"
