"""A watched request: folding its steps gives its answer and its usage; watching changes nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, EngineConfig, FinishReason, Hole, SamplingParams, Submission, load
from engine.scheduling.trace import ranges
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS, FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS


def crowd(kinds, holes, count, seed):
    """`count` requests of all kinds, watched."""
    rng = np.random.default_rng(seed)
    kinds = list(itertools.product(*kinds, [None, 4], [0.0, 0.9]))
    asked = []
    for number in rng.permutation(len(kinds))[:count].tolist():
        cache, unmask, length, lookahead, temperature = kinds[number]
        prompt = rng.integers(0, 250, int(rng.integers(4, 30))).tolist()
        fills = (Hole(offset=2, length=3), Hole(offset=4, length=5)) if holes and number % 4 == 0 else ()
        asked.append(
            Submission(
                request_id=f"{number} {cache} {unmask} {length} {lookahead} {temperature}",
                prompt_ids=prompt,
                sampling=SamplingParams(max_tokens=8 if fills else 21, temperature=temperature, seed=number),
                diffusion=DiffusionParams(
                    cache=cache,
                    unmask=unmask,
                    block_length=length,
                    lookahead=lookahead,
                    threshold=0.3,
                    current_k=4,
                ),
                holes=fills,
                is_traced=True,
                tells_steps=True,
            )
        )
    return asked


FULL = (FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS, [4, 8, 32])
CAUSAL = (["block", "sub_block"], BLOCK_CAUSAL_UNMASKS, [4, 8])


def served(engine, asked):
    """(outputs, steps) of each request, all in one batch that they join at different times."""
    outputs, steps = ({one.request_id: [] for one in asked} for _ in range(2))
    waiting = list(asked)
    while waiting or engine.request_ids:
        for one in waiting[:3]:
            engine.submit(engine.new_request(one))
        del waiting[:3]
        for output in engine.step():
            outputs[output.request_id].append(output)
        for step in engine.take_traced():
            steps[step.request_id].append(step)
    return outputs, steps


def positions(spans):
    return [position for start, end in spans for position in range(start, end)]


def check(asked, outputs, steps):
    usage = outputs[-1].usage
    canvas = steps[0].canvas
    assert [step.step for step in steps] == list(range(1, usage.forwards + 1))
    assert sum(len(positions(step.rows)) for step in steps) == usage.rows_computed
    assert steps[-1].visible_end == usage.visible_tokens
    assert canvas.cached_tokens == usage.cached_tokens
    answer = positions(canvas.answer)
    assert canvas.end - len(answer) == usage.prompt_tokens == len(asked.prompt_ids)
    decoded = {}
    for step in steps:
        start, end = step.block
        assert all(start <= position < end for position in step.positions)
        assert all(0 <= confidence <= 1 for confidence in step.confidences)
        assert len(step.positions) == len(step.token_ids) == len(step.confidences)
        assert not decoded.keys() & {*step.positions}, "no mask is filled twice"
        decoded |= {at: (token, step.step) for at, token in zip(step.positions, step.token_ids, strict=True)}
    kept = [position for position in answer if position < canvas.output_end][: usage.completion_tokens]
    assert [token for output in outputs for token in output.token_ids] == [decoded[at][0] for at in kept]
    assert [step for output in outputs for step in output.steps] == [decoded[at][1] for at in kept]


@pytest.mark.parametrize(
    ("model", "kinds", "count"), [("llada_tiny", FULL, 30), ("dream_tiny", FULL, 12), ("sdar_tiny", CAUSAL, 24)]
)
def test_folding_the_steps_gives_answer_and_usage(request, model, kinds, count):
    engine = load(EngineConfig(model=str(request.getfixturevalue(model)), max_running_requests=32))
    asked = crowd(kinds, not engine.info.spec.is_block_causal, count, seed=3)
    outputs, steps = served(engine, asked)
    for one in asked:
        check(one, outputs[one.request_id], steps[one.request_id])


@pytest.mark.slow
def test_folding_the_steps_of_many_requests(llada_tiny, sdar_tiny, fast_dllm_tiny):
    for model, kinds in ((llada_tiny, FULL), (sdar_tiny, CAUSAL), (fast_dllm_tiny, CAUSAL)):
        engine = load(EngineConfig(model=str(model), max_running_requests=32))
        asked = crowd(kinds, not engine.info.spec.is_block_causal, 70, seed=5)
        outputs, steps = served(engine, asked)
        for one in asked:
            check(one, outputs[one.request_id], steps[one.request_id])


def test_watching_changes_nothing(llada_tiny):
    config = EngineConfig(model=str(llada_tiny))
    watched = crowd(FULL, True, 12, seed=1)
    plain = [replace(one, is_traced=False, tells_steps=False) for one in watched]
    ours, _ = served(load(config), watched)
    theirs, steps = served(load(config), plain)
    assert not any(steps.values())
    for name, outputs in theirs.items():
        assert [replace(output, steps=None) for output in ours[name]] == outputs


def test_a_shared_prompt_is_told(sdar_tiny):
    engine = load(EngineConfig(model=str(sdar_tiny)))
    one = Submission(
        request_id="first",
        prompt_ids=list(range(100)),
        sampling=SamplingParams(max_tokens=4),
        diffusion=DiffusionParams(),
        is_traced=True,
    )
    served(engine, [one])
    _, steps = served(engine, [replace(one, request_id="second")])
    assert steps["second"][0].canvas.cached_tokens > 0


def test_what_was_traced_of_an_aborted_request_ends_with_it(llada_tiny):
    engine = load(EngineConfig(model=str(llada_tiny)))
    [one] = crowd(FULL, False, 1, seed=2)
    engine.submit(engine.new_request(one))
    engine.step()
    assert len(engine.take_traced()) == 1
    engine.abort(one.request_id, FinishReason.ABORT)
    engine.step()
    assert engine.take_traced() == []


def test_steps_that_nobody_takes_are_not_kept(llada_tiny):
    engine = load(EngineConfig(model=str(llada_tiny)))
    for one in crowd(FULL, False, 2, seed=2):
        engine.submit(engine.new_request(replace(one, diffusion=replace(one.diffusion, unmask="fixed"))))
    for _ in range(3):
        engine.step()
    assert [step.step for step in engine.take_traced()] == [3, 3]


@pytest.mark.parametrize("spans", [(), ((0, 1),), ((0, 3), (4, 5)), ((2, 3), (5, 9), (10, 11))])
def test_ranges(spans):
    assert ranges(np.array(positions(spans), np.int64)) == spans
