"""Keys and values that one request hands on to another, through the engine.

Layer 0 is the oracle: what lies there at a position depends on the token at it alone. And a cold run, wherever what is
handed on is exact, or computed again.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine import DiffusionParams, EngineConfig, InvalidRequest, SamplingParams, Submission, load
from engine.core.request import Hole
from engine.kernels.kv.formats import read
from tests.engine.faulty import FaultyRunner, find, outputs

RNG = np.random.default_rng(0)
TEXT = RNG.integers(1, 200, 48).tolist()
OTHER = RNG.integers(1, 200, 70).tolist()


def engine_of(folder, **config):
    return load(EngineConfig(model=str(folder), **{"relay_tokens": 4096, "page_size": 8, **config}))


def asked(name, prompt, *, max_tokens=8, **fields):
    diffusion = {
        name: fields.pop(name) for name in ("cache", "relay_recompute", "kv_budget", "threshold") if name in fields
    }
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        diffusion=DiffusionParams(block_length=8, **diffusion),
        **{"relay_as": name, **fields},
    )


def ended(engine, *some):
    """As `outputs`, until sources are ready too."""
    made = outputs(engine, *some)
    while engine.has_work:
        assert engine.step() == []
    return made


def tokens(made):
    return [token for output in made for token in output.token_ids]


def canvas_of(engine, one):
    """Prompt and answer."""
    return [*one.prompt_ids, *tokens(ended(engine, one)[one.request_id])]


def first_layer(engine, ids, positions):
    """Keys and values [tokens, kv_heads, head_dim] of these tokens at these positions in layer 0."""
    model = engine.runner.model
    with torch.inference_mode():
        x, at = F.embedding(torch.tensor(ids), model.embed), torch.as_tensor(positions)
        _, keys, values = model.parts.before(model.blocks[0], x, model.cos[at], model.sin[at])
    return keys, values


def stored(engine, slots, layer=0):
    return [
        read(kept, torch.from_numpy(slots), torch.float32).transpose(0, 1) for kept in engine.runner.pool.layer(layer)
    ]


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


@pytest.mark.parametrize("before", [3, 60], ids=["to the left", "to the right"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_what_is_taken_over_is_of_its_new_position(folder, before, kv_dtype):
    engine = engine_of(folder, kv_dtype=kv_dtype)
    canvas = canvas_of(engine, asked("source", [*OTHER[:20], *TEXT]))
    prompt = [*OTHER[-before:], *canvas[20:64], *OTHER[:30]]
    engine.submit(engine.new_request(asked("taker", prompt, relay_from=("source",), relay_recompute=0.0)))
    engine.step()
    taker = find(engine, "taker")
    adopted = np.arange(before, before + 44)
    adopted = adopted[adopted < taker.first_block_start - taker.lead - 1] if taker.spec.is_block_causal else adopted
    assert taker.spared.tolist() == adopted.tolist()
    expected = first_layer(engine, [prompt[position] for position in adopted], adopted)
    for kept, computed in zip(stored(engine, taker.slots[adopted]), expected, strict=True):
        off = 1e-4 if kv_dtype == "auto" else computed.abs().max() / 40
        torch.testing.assert_close(kept, computed, rtol=0, atol=float(off))


@pytest.mark.parametrize("cache", ["prefix", "dual", "window", "delayed", "d2", "block"])
def test_what_is_all_computed_again_is_a_cold_run(request, cache):
    folder = request.getfixturevalue("sdar_tiny" if cache == "block" else "llada_tiny")
    engine = engine_of(folder)
    canvas = canvas_of(engine, asked("source", TEXT, cache=cache))
    prompt = [*OTHER, *canvas, *OTHER[:20]]
    cold = tokens(outputs(engine_of(folder), asked("cold", prompt, cache=cache))["cold"])
    [made] = outputs(engine, asked("taker", prompt, cache=cache, relay_from=("source",), relay_recompute=1.0)).values()
    assert tokens(made) == cold
    relayed = made[-1].usage.relayed
    # Where pages are shared, it shall share what it computes.
    assert relayed.adopted == relayed.recomputed == (0 if cache == "block" else len(canvas))


@pytest.mark.parametrize("fixture", ["sdar_tiny", "nemotron_tiny"])
def test_the_same_beginning_is_exact_on_block_causal_models(request, fixture):
    """Handed on, where pages are not shared, and not computed: the tokens are those of a cold run."""
    folder = request.getfixturevalue(fixture)
    engine = engine_of(folder, prefix_caching=False)
    canvas = canvas_of(engine, asked("source", TEXT))
    prompt = [*canvas, *OTHER[:40]]
    cold = outputs(engine_of(folder, prefix_caching=False), asked("cold", prompt))["cold"]
    taken = ended(engine, asked("taker", prompt, relay_from=("source",), relay_recompute=0.0))["taker"]
    assert tokens(taken) == tokens(cold)
    assert taken[-1].usage.relayed.adopted == len(canvas)
    assert taken[-1].usage.rows_computed == cold[-1].usage.rows_computed - len(canvas)


def test_where_pages_are_shared_the_same_beginning_is_not_handed_on(sdar_tiny):
    engine = engine_of(sdar_tiny)
    canvas = canvas_of(engine, asked("source", TEXT))
    prompt = [*canvas, *OTHER[:40]]
    cold = outputs(engine_of(sdar_tiny), asked("cold", prompt))["cold"]
    taken = outputs(engine, asked("taker", prompt, relay_from=("source",)))["taker"]
    assert tokens(taken) == tokens(cold)
    assert taken[-1].usage.relayed.adopted == 0
    assert taken[-1].usage.cached_tokens == len(canvas) - 8, "all but the answer's last block"


@pytest.mark.parametrize("share", [0.0, 0.15])
@pytest.mark.parametrize("cache", ["dual", "window", "d2"])
def test_the_first_step_computes_what_is_not_taken_over(llada_tiny, share, cache):
    engine = engine_of(llada_tiny)
    canvas = canvas_of(engine, asked("source", TEXT))
    prompt = [*OTHER, *canvas, *OTHER[:20], *canvas[10:40], *OTHER[:17]]
    one = asked("taker", prompt, cache=cache, relay_from=("source",), relay_recompute=share, is_traced=True)
    engine.submit(engine.new_request(one))
    engine.step()
    [step] = engine.take_traced()
    relayed = find(engine, "taker").usage.relayed
    assert relayed.adopted == len(canvas) + 30
    assert relayed.recomputed == round(share * len(canvas)) + round(share * 30)
    first = sum(end - start for start, end in step.rows)
    assert first == step.visible_end - relayed.adopted + relayed.recomputed
    counts = engine.stats().relay_tokens
    assert counts == {
        "adopted": relayed.adopted,
        "recomputed": relayed.recomputed,
        "missed": len(prompt) - 16 - relayed.adopted,
    }


def test_a_long_prompt_that_is_taken_over_comes_in_parts(sdar_tiny):
    """With rows missing anywhere in it, and the same tokens as in one part."""
    prompts = [[*OTHER, *TEXT, *OTHER[::-1], *TEXT, *OTHER[:33]]] * 2
    made = []
    for prompt, rows in zip(prompts, (64, 2048), strict=True):
        engine = engine_of(sdar_tiny, max_batch_rows=rows, max_running_requests=2)
        ended(engine, asked("source", TEXT))
        made.append(outputs(engine, asked("taker", prompt, relay_from=("source",)))["taker"])
    assert tokens(made[0]) == tokens(made[1])
    assert [one[-1].usage.relayed.adopted for one in made] == [2 * len(TEXT)] * 2


@pytest.mark.parametrize(
    "fields",
    [{"cache_salt": "other"}, {"relay_from": ("unknown",)}, {"relay_end": 10}, {"relay_from": ()}],
    ids=["of another salt", "unknown", "behind the end", "not asked for"],
)
@pytest.mark.parametrize("fixture", ["llada_tiny", "sdar_tiny"])
def test_nothing_is_taken_over(request, fixture, fields):
    folder = request.getfixturevalue(fixture)
    engine = engine_of(folder, prefix_caching=False)
    canvas = canvas_of(engine, asked("source", TEXT))
    prompt = [*OTHER, *canvas, *OTHER[:20]]
    cold = outputs(engine_of(folder, prefix_caching=False), asked("cold", prompt))["cold"]
    taken = ended(engine, asked("taker", prompt, **{"relay_from": ("source",), **fields}))["taker"]
    assert (tokens(taken), taken[-1].usage.rows_computed) == (tokens(cold), cold[-1].usage.rows_computed)
    relayed = taken[-1].usage.relayed
    if fields.get("relay_from") == ():
        assert relayed is None
    else:
        assert (relayed.adopted, relayed.unknown) == (0, int("relay_end" not in fields))


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


def test_who_names_a_source_that_is_not_ready_waits_for_it_and_gets_the_same(llada_tiny):
    prompt = [*OTHER, *TEXT, *OTHER[:20]]
    made = []
    for is_ready in (True, False):
        engine = engine_of(llada_tiny)
        (ended if is_ready else outputs)(engine, asked("source", TEXT))
        taken = outputs(engine, asked("taker", prompt, relay_from=("source",)), asked("beside", OTHER))
        made.append({name: (tokens(one), one[-1].usage) for name, one in taken.items()})
    assert made[0] == made[1]


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


def test_refused(llada_tiny, engine):
    with pytest.raises(InvalidRequest, match="'none' computes all") as error:
        engine.new_request(asked("r", TEXT, cache="none", relay_from=("a",)))
    assert error.value.param == "diffusion.relay_from"
    with pytest.raises(InvalidRequest, match="given up cannot be handed on") as error:
        engine.new_request(asked("r", TEXT, cache="window", kv_budget=32, relay_from=("a",)))
    assert error.value.param == "diffusion.relay_from"
    with pytest.raises(InvalidRequest, match="it may name 8") as error:
        engine.new_request(asked("r", TEXT, relay_from=tuple("abcdefghi")))
    assert error.value.param == "diffusion.relay_from"


def test_who_keeps_only_so_many_keys_and_values_is_no_source(llada_tiny):
    engine = engine_of(llada_tiny)
    ended(engine, asked("some", TEXT, cache="window", kv_budget=16))
    assert engine.scheduler.relay.sources == []


def test_a_prompt_with_holes_takes_nothing_over(llada_tiny):
    engine = engine_of(llada_tiny)
    ended(engine, asked("source", TEXT))
    one = replace(asked("taker", [*TEXT, *OTHER], relay_from=("source",)), holes=(Hole(60, 8),))
    [made] = ended(engine, one).values()
    assert made[-1].usage.relayed.adopted == 0
    assert [source.name for source in engine.scheduler.relay.sources] == ["source"]


@pytest.mark.parametrize("fixture", ["llada_tiny", "sdar_tiny"])
@pytest.mark.parametrize("max_tokens", [2, 24])
def test_what_cannot_be_moved_is_computed(request, monkeypatch, fixture, max_tokens):
    """Also of an answer that would end in the very step."""
    folder = request.getfixturevalue(fixture)
    engine = engine_of(folder)
    prompt = [*OTHER[:20], *canvas_of(engine, asked("source", TEXT)), *OTHER[30:58]]
    row = {"max_tokens": max_tokens, "threshold": 0.0}
    cold = tokens(outputs(engine_of(folder), asked("cold", prompt, **row))["cold"])

    def carry_out(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("engine.engine.carry_out", carry_out)
    made = ended(engine, asked("taker", prompt, **row, relay_from=("source",), relay_recompute=0.0))["taker"]
    assert tokens(made) == cold
    assert made[-1].usage.relayed.adopted == 0


def test_pages_that_are_there_are_not_taken_over_again(sdar_tiny):
    """A source's text behind other words: exact once anybody has computed the same prompt."""
    engine = engine_of(sdar_tiny)
    prompt = [*OTHER[:20], *canvas_of(engine, asked("source", TEXT)), *OTHER[30:58]]
    first = ended(engine, asked("first", prompt))["first"]
    named = ended(engine, asked("named", prompt, relay_from=("source",), relay_recompute=0.0))["named"]
    again = ended(engine, asked("again", prompt))["again"]
    assert named[-1].usage.relayed.adopted == 0
    assert named[-1].usage.cached_tokens == again[-1].usage.cached_tokens > 0
    assert tokens(named) == tokens(again) == tokens(first)


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
