"""Ended requests as sources: what their slots hold, when they are ready, and when they go."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from engine import EngineConfig, load
from tests.engine.faulty import FaultyRunner, find, outputs
from tests.engine.relaying import OTHER, TEXT, asked, canvas_of, ended, engine_of, first_layer, stored, tokens


@pytest.fixture(params=["llada_tiny", "dream_tiny", "sdar_tiny", "fast_dllm_tiny", "nemotron_tiny"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_no_slot_of_a_source_holds_a_mask(folder):
    engine = engine_of(folder)
    canvas = canvas_of(engine, asked("source", TEXT))
    [source] = engine.scheduler.relay.sources
    expected = first_layer(engine, canvas, range(len(canvas)))
    for kept, values in zip(stored(engine, source.canvas.slots[: len(canvas)]), expected, strict=True):
        torch.testing.assert_close(kept, values, rtol=0, atol=1e-5)


def test_before_it_is_ready_some_do(llada_tiny):
    """So the test above would see it."""
    engine = engine_of(llada_tiny)
    [made] = outputs(engine, asked("source", TEXT)).values()
    canvas = [*TEXT, *tokens(made)]
    [source] = engine.scheduler.relay.sources
    _, values = stored(engine, source.canvas.slots[: len(canvas)])
    assert not torch.allclose(values, first_layer(engine, canvas, range(len(canvas)))[1], atol=1e-3)
    assert engine.has_work
    assert source.commit.rows.tolist() == list(range(len(canvas)))


def test_a_source_of_a_block_causal_model_holds_what_a_prompt_of_its_tokens_does(sdar_tiny):
    engine = engine_of(sdar_tiny)
    canvas = canvas_of(engine, asked("source", TEXT))
    [source] = engine.scheduler.relay.sources
    cold = engine_of(sdar_tiny)
    cold.submit(cold.new_request(asked("prompt", [*canvas, 1], max_tokens=4)))
    cold.step()
    prompt = find(cold, "prompt")
    for layer in range(len(engine.runner.pool.keys)):
        pairs = zip(
            *(
                stored(one, slots[: len(canvas)], layer)
                for one, slots in ((engine, source.canvas.slots), (cold, prompt.slots))
            ),
            strict=True,
        )
        for kept, computed in pairs:
            torch.testing.assert_close(kept, computed, rtol=0, atol=1e-5)


def test_with_no_room_for_sources_nobody_is_one(llada_tiny):
    engine = load(EngineConfig(model=str(llada_tiny)))
    outputs(engine, asked("source", TEXT))
    assert not engine.has_work
    taken = outputs(engine, asked("taker", [*TEXT, *OTHER], relay_from=("source",)))["taker"]
    assert (taken[-1].usage.relayed.adopted, taken[-1].usage.relayed.unknown) == (0, 1)


def test_a_model_with_windows_has_no_sources(diffusion_gemma_tiny):
    engine = load(EngineConfig(model=str(diffusion_gemma_tiny), relay_tokens=4096))
    assert engine.info.relay_tokens == 0


def test_the_source_that_was_named_least_recently_goes_first(llada_tiny):
    """There is room for two: 56 tokens each."""
    engine = engine_of(llada_tiny, relay_tokens=120)
    for name in ("one", "two"):
        ended(engine, asked(name, TEXT))
    ended(engine, asked("taker", [*TEXT, *OTHER[:16]], relay_as="", relay_from=("one",)))
    ended(engine, asked("three", TEXT))
    assert [source.name for source in engine.scheduler.relay.sources] == ["one", "three"]
    assert engine.stats().relay_pages == 14
    ended(engine, asked("long", [*TEXT, *OTHER[:40]]))
    assert [source.name for source in engine.scheduler.relay.sources] == ["long"]
    ended(engine, asked("too long", [*TEXT, *OTHER]))
    assert [source.name for source in engine.scheduler.relay.sources] == ["long"]


def test_all_choices_of_an_answer_are_sources(llada_tiny):
    engine = engine_of(llada_tiny)
    for number, prompt in enumerate((TEXT[:30], TEXT)):
        ended(engine, replace(asked(f"answer-{number}", prompt), relay_as="answer"))
    taken = ended(engine, asked("taker", [*OTHER, *TEXT, *OTHER[:16]], relay_from=("answer", "answer")))["taker"]
    assert taken[-1].usage.relayed.adopted == len(TEXT)


def test_what_was_taken_over_and_never_computed_is_not_handed_on_again(sdar_tiny):
    engine = engine_of(sdar_tiny, prefix_caching=False)
    ended(engine, asked("one", TEXT))
    prompt = [*OTHER, *TEXT, *OTHER[:20]]
    ended(engine, asked("two", prompt, relay_from=("one",), relay_recompute=0.0))
    taken = ended(engine, asked("three", [*prompt, *OTHER[:17]], relay_from=("two",)))["three"]
    assert taken[-1].usage.relayed.adopted == len(OTHER) + 20


def test_a_source_that_goes_while_somebody_waits_for_it_is_done_without(llada_tiny):
    engine = engine_of(llada_tiny)
    outputs(engine, asked("source", TEXT))
    prompt = [*OTHER, *TEXT, *OTHER[:20]]
    engine.submit(engine.new_request(asked("taker", prompt, relay_from=("source",))))
    engine.scheduler._admit()
    taker = find(engine, "taker")
    assert taker.runs
    engine.scheduler.pool.on_short()
    while engine.has_work:
        engine.step()
    assert (taker.relayed.adopted, taker.relayed.unknown) == (0, 1)
    cold = outputs(engine_of(llada_tiny), asked("cold", prompt))["cold"]
    assert (taker.decoded_tokens.tolist(), taker.usage.rows_computed) == (tokens(cold), cold[-1].usage.rows_computed)


def test_a_source_whose_rows_fail_is_none_and_nobody_else_fails(llada_tiny):
    engine = engine_of(llada_tiny)
    outputs(engine, asked("source", TEXT))
    [source] = engine.scheduler.relay.sources
    last = int(source.canvas.slots[source.commit.rows[-1]])

    def fault(batch):
        slots = torch.arange(engine.info.kv_tokens)[batch.slots]
        if last in slots.tolist() and engine.scheduler.relay.sources:
            raise RuntimeError("no")

    engine.runner = FaultyRunner(engine.runner, fault)
    expected = tokens(outputs(engine_of(llada_tiny), asked("other", OTHER))["other"])
    assert tokens(ended(engine, asked("other", OTHER, relay_as=""))["other"]) == expected
    assert engine.scheduler.relay.sources == []
    assert engine.stats().relay_pages == engine.stats().kv_pages_used == 0


def test_no_request_waits_for_pages_that_sources_keep(llada_tiny):
    """A pool of one canvas of the context's length, full of sources."""
    engine = engine_of(llada_tiny, max_model_len=256, kv_cache_tokens=256, relay_tokens=256)
    ended(engine, asked("one", TEXT), asked("two", TEXT), asked("three", TEXT))
    assert engine.stats().relay_pages == 21
    assert engine.stats().kv_pages_used == 0
    cold = tokens(outputs(engine_of(llada_tiny), asked("cold", [*OTHER, *OTHER, *OTHER]))["cold"])
    [made] = outputs(engine, asked("all", [*OTHER, *OTHER, *OTHER], relay_from=("three",))).values()
    assert tokens(made) == cold
    assert engine.stats().preemptions == engine.stats().stalled == 0


def test_who_keeps_only_so_many_keys_and_values_is_no_source(llada_tiny):
    engine = engine_of(llada_tiny)
    ended(engine, asked("some", TEXT, cache="window", kv_budget=16))
    assert engine.scheduler.relay.sources == []


def test_sources_leave_shared_pages_to_be_found(sdar_tiny):
    """A pool in which they are short: what gives way is a page that nobody keeps, or a source whole."""
    found = []
    for relay_tokens in (0, 400):
        engine = engine_of(sdar_tiny, relay_tokens=relay_tokens, kv_cache_tokens=512, max_model_len=256)
        prompts = [np.random.default_rng(seed).integers(1, 200, 64).tolist() for seed in range(5)]
        for number, prompt in enumerate(prompts):
            ended(engine, asked(f"{number}", prompt))
        ended(engine, asked("large", np.random.default_rng(9).integers(1, 200, 150).tolist()))
        repeats = [ended(engine, asked(f"again {n}", prompts[n], relay_as=""))[f"again {n}"] for n in (4, 3, 2)]
        found.append([made[-1].usage.cached_tokens for made in repeats])
    assert found[0] == found[1]
    assert sum(found[0]) > 0


def test_a_step_beside_others_makes_one_source_ready(llada_tiny):
    engine = engine_of(llada_tiny)
    for number in range(6):
        engine.submit(engine.new_request(asked(f"{number}", TEXT, max_tokens=1)))
    engine.submit(engine.new_request(asked("long", OTHER, max_tokens=120)))
    pending = []
    while engine.request_ids:
        engine.step()
        pending.append(len(engine.scheduler.relay._pending))
    assert max(pending) == 6
    assert all(one - two <= 1 for one, two in pairwise(pending))


def test_what_a_failed_step_leaves_is_forgotten(llada_tiny):
    engine = engine_of(llada_tiny)
    outputs(engine, asked("source", TEXT))
    assert engine.has_work
    engine.recover()
    assert not engine.has_work
    assert engine.stats().relay_pages == 0
