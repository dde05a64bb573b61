"""What a request takes over from those that it names: its rows, its tokens, and when it takes nothing.

The oracle is a cold run, wherever what is handed on is exact, or computed again; and layer 0, as in `relaying`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import InvalidRequest
from engine.core.requests.submission import Hole
from tests.engine.faulty import find, outputs
from tests.engine.relaying import OTHER, TEXT, asked, canvas_of, ended, engine_of, first_layer, stored, tokens


@pytest.mark.parametrize(("before", "kv_dtype"), [(3, "int8"), (60, "auto")], ids=["to the left", "to the right"])
@pytest.mark.parametrize("fixture", ["llada_tiny", "dream_tiny", "sdar_tiny", "fast_dllm_tiny", "nemotron_tiny"])
def test_what_is_taken_over_is_of_its_new_position(request, fixture, before, kv_dtype):
    engine = engine_of(request.getfixturevalue(fixture), kv_dtype=kv_dtype)
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
    ("fixture", "fields"),
    [
        ("llada_tiny", {"cache_salt": "other"}),
        ("sdar_tiny", {"relay_from": ("unknown",)}),
        ("sdar_tiny", {"relay_end": 10}),
        ("llada_tiny", {"relay_end": 10}),
        ("llada_tiny", {"relay_from": ()}),
    ],
    ids=["of another salt", "unknown", "behind the end", "behind the end, both directions", "not asked for"],
)
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


def test_who_names_a_source_that_is_not_ready_waits_for_it_and_gets_the_same(llada_tiny):
    prompt = [*OTHER, *TEXT, *OTHER[:20]]
    made = []
    for is_ready in (True, False):
        engine = engine_of(llada_tiny)
        (ended if is_ready else outputs)(engine, asked("source", TEXT))
        taken = outputs(engine, asked("taker", prompt, relay_from=("source",)), asked("beside", OTHER))
        made.append({name: (tokens(one), one[-1].usage) for name, one in taken.items()})
    assert made[0] == made[1]


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


def test_who_cannot_be_matched_fails_alone(llada_tiny, monkeypatch):
    """And holds nobody up behind it."""
    engine = engine_of(llada_tiny)
    ended(engine, asked("source", TEXT))

    def match(_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine.scheduler.relay, "match", match)
    made = ended(engine, asked("taker", OTHER, relay_from=("source",)), asked("behind", OTHER))
    assert [output.finish_reason for output in made["taker"]] == ["error"]
    assert made["behind"][-1].finish_reason == "length"
