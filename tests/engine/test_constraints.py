"""Requests with constraints through the engine: every answer is of its language, and ends in time."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, EngineConfig, Hole, InvalidRequest, SamplingParams, Submission, load
from engine.core.output import FinishReason
from tests.engine.automata import automaton
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS, FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS

TOKENS = 256
"""Ids that are texts in all of the tiny checkpoints."""


def languages(vocab, stops):
    """Automata over token ids: an alternation, a counted repetition, pairs in brackets, a long detour."""
    even, odd, every = range(0, TOKENS, 2), range(1, TOKENS, 2), range(TOKENS)
    return {
        "alternating": automaton(vocab, [dict.fromkeys(even, 1), dict.fromkeys(odd, 0)], [0], stops),
        "three to nine": automaton(
            vocab, [dict.fromkeys(range(9, 200), at + 1) for at in range(9)] + [{}], range(3, 10), stops
        ),
        "pairs": automaton(
            vocab,
            [{7: 1}, {**dict.fromkeys(range(100, 240), 2)}, {44: 1, 8: 3}, {}],
            [3],
            stops,
        ),
        "one or the other": automaton(
            vocab,
            [{3: 1, 200: 4}, {5: 2}, {6: 3}, {}, dict.fromkeys(every, 5), dict.fromkeys(odd, 4) | {11: 6}, {12: 3}],
            [3],
            stops,
        ),
    }


def is_valid(constraint, tokens):
    state = constraint.advanced(0, np.array(tokens, np.int64))
    return state < constraint.end and bool(constraint.accepts[state])


def request(name, constraint, *, max_tokens, temperature=0.0, seed=0, prompt=(5, 6, 7), sampling=None, **diffusion):
    return Submission(
        request_id=name,
        prompt_ids=list(prompt),
        sampling=SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, constraint=constraint, **(sampling or {})
        ),
        diffusion=DiffusionParams(**diffusion),
    )


def least(constraint):
    return max(constraint.least_tokens, 1)


def crowd(vocab, stops, caches, unmasks, lengths, count):
    """`count` constrained requests of all kinds, every third followed by an unconstrained one."""
    rng, known, asked = np.random.default_rng(0), languages(vocab, stops), []
    kinds = list(itertools.product(caches, unmasks, [0.0, 0.8, 2.0], lengths, sorted(known)))
    for number in rng.permutation(len(kinds))[:count].tolist():
        cache, unmask, temperature, length, name = kinds[number]
        constraint = known[name]
        room = int(rng.choice([0, 1, 5, 20]))
        asked.append(
            request(
                f"{number} {cache} {unmask} {temperature} {length} {name} {room}",
                constraint,
                max_tokens=least(constraint) + room,
                temperature=temperature,
                seed=number,
                prompt=rng.integers(0, TOKENS, int(rng.integers(2, 12))).tolist(),
                cache=cache,
                unmask=unmask,
                block_length=length,
                threshold=0.3,
                current_k=4,
                guidance=str(rng.choice(["posterior", "posterior", "model"])),
            )
        )
        if number % 3 == 0:
            free = replace(asked[-1], request_id=f"free {number}")
            asked.append(replace(free, sampling=replace(free.sampling, constraint=None)))
    return asked


def assert_valid(answers, asked):
    for one in asked:
        tokens, reason, _ = answers[one.request_id]
        if one.sampling.constraint is not None:
            assert reason is FinishReason.STOP, one.request_id
            assert is_valid(one.sampling.constraint, tokens), (one.request_id, tokens)


def served(model, run, asked):
    """The answers of all at once, in one running batch."""
    return run(load(EngineConfig(model=str(model), max_running_requests=64, max_queued_requests=4096)), *asked)


FULL = (FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS, [4, 8, 32])
CAUSAL = (["block", "sub_block"], BLOCK_CAUSAL_UNMASKS, [4, 8])


def check_crowd(model, run, vocab, stops, kinds, count):
    asked = crowd(vocab, stops, *kinds, count)
    answers = served(model, run, asked)
    assert_valid(answers, asked)
    free = [one for one in asked if one.sampling.constraint is None]
    alone = served(model, run, free)
    assert {one.request_id: answers[one.request_id][0] for one in free} == {name: a[0] for name, a in alone.items()}


@pytest.mark.parametrize("count", [30, pytest.param(90, marks=pytest.mark.slow)])
def test_answers_of_a_model_that_attends_in_both_directions(llada_tiny, run, count):
    check_crowd(llada_tiny, run, 260, [257], FULL, count)


@pytest.mark.slow
def test_answers_of_a_model_with_shifted_logits(dream_tiny, run):
    spec = load(EngineConfig(model=str(dream_tiny))).info.spec
    check_crowd(dream_tiny, run, spec.vocab_size, sorted(spec.eos_ids), FULL, 15)


@pytest.mark.parametrize("count", [24, pytest.param(80, marks=pytest.mark.slow)])
def test_answers_of_a_block_causal_model(sdar_tiny, run, count):
    spec = load(EngineConfig(model=str(sdar_tiny))).info.spec
    check_crowd(sdar_tiny, run, spec.vocab_size, sorted(spec.eos_ids), CAUSAL, count)


def test_answers_of_a_block_causal_model_with_shifted_logits(fast_dllm_tiny, run):
    spec = load(EngineConfig(model=str(fast_dllm_tiny))).info.spec
    check_crowd(fast_dllm_tiny, run, spec.vocab_size, sorted(spec.eos_ids), CAUSAL, 15)


def check_the_model_s_own(model, run, caches, unmasks, temperatures):
    """Token by token, whatever the policy: `guidance: model` changes only what would become invalid.

    The language has all texts without some tokens, so that some answers are of it by themselves and others are not.
    """
    spec = load(EngineConfig(model=str(model))).info.spec
    tokens = {token: 0 for token in range(TOKENS) if token % 13}
    most = automaton(spec.vocab_size, [tokens], [0], sorted(spec.eos_ids))
    free, guided = [], []
    for number, (cache, unmask, temperature) in enumerate(itertools.product(caches, unmasks, temperatures)):
        one = request(
            f"{number} {cache} {unmask} {temperature}",
            None,
            max_tokens=14,
            temperature=temperature,
            seed=number,
            prompt=[number % 200, 9, 4],
            cache=cache,
            unmask=unmask,
            block_length=8,
            threshold=0.3,
            current_k=4,
            guidance="model",
        )
        free.append(one)
        guided.append(replace(one, sampling=replace(one.sampling, constraint=most)))
    plain, ours = served(model, run, free), served(model, run, guided)
    valid = [name for name, (tokens, *_) in plain.items() if is_valid(most, tokens)]
    assert 0.1 * len(free) < len(valid) < 0.9 * len(free)
    assert {name: ours[name][0] for name in valid} == {name: plain[name][0] for name in valid}
    assert_valid(ours, guided)


def test_the_model_s_own_answer_stays_where_it_is_valid(llada_tiny, run):
    unmasks = ["threshold", "fixed", "entropy_bound", "factor", "cad", "dream"]
    check_the_model_s_own(llada_tiny, run, ["none", "dual"], unmasks, [0.0, 0.8])


@pytest.mark.slow
def test_it_stays_with_every_policy_and_cache(llada_tiny, dream_tiny, sdar_tiny, run):
    check_the_model_s_own(llada_tiny, run, *FULL[:2], [0.0, 0.8])
    check_the_model_s_own(dream_tiny, run, *FULL[:2], [0.0, 0.8])
    check_the_model_s_own(sdar_tiny, run, *CAUSAL[:2], [0.0, 0.8])


def test_a_constrained_request_gets_the_same_tokens_in_any_company(llada_tiny, run):
    asked = [one for one in crowd(260, [257], *FULL, 12) if one.sampling.constraint is not None]
    together = served(llada_tiny, run, asked)
    for one in asked[:3]:
        assert served(llada_tiny, run, [one])[one.request_id][0] == together[one.request_id][0]


EDITS = [
    {"logit_bias": ((7, -100.0), (44, 80.0)), "repetition_penalty": 3.0},
    {"presence_penalty": 2.0, "frequency_penalty": -2.0},
    {"bad_words": ((7, 100), (44, 120, 44)), "logprobs": 3},
    {"bad_words": ((44,),)},
    {"allowed_ids": frozenset({7, 8, 101, 257}), "logprobs": 0},
    {"top_k": 1},
    {"top_p": 0.2, "min_p": 0.5},
]


def test_edits_and_narrowing_leave_answers_valid(llada_tiny, run):
    pairs = languages(260, [257])["pairs"]
    asked = [
        request(f"{number}-{heat}", pairs, max_tokens=9, temperature=heat, seed=number, block_length=4, sampling=edits)
        for number, edits in enumerate(EDITS)
        for heat in (0.0, 1.5)
    ]
    answers = served(llada_tiny, run, asked)
    assert_valid(answers, asked)
    for one in asked:
        tokens = set(answers[one.request_id][0])
        assert tokens <= (one.sampling.allowed_ids or tokens)
        assert not tokens & {word[0] for word in one.sampling.bad_words if len(word) == 1}


@pytest.mark.parametrize(
    ("param", "sampling", "words"),
    [
        ("max_tokens", {"max_tokens": 2}, "takes 3 tokens"),
        ("stop_token_ids", {"stop_ids": frozenset({9})}, "stop_token_ids"),
        ("min_tokens", {"min_tokens": 1}, "min_tokens"),
        ("ignore_eos", {"ignore_eos": True}, "ignore_eos"),
        ("bad_words", {"bad_words": ((7,),)}, "leaves no answer"),
        ("bad_words", {"bad_words": ((257,),)}, "all tokens that end an answer"),
        ("allowed_token_ids", {"allowed_ids": frozenset({44, 100, 257})}, "leaves no answer"),
        ("allowed_token_ids", {"allowed_ids": frozenset(range(257))}, "all tokens that end an answer"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(engine, param, sampling, words):
    params = SamplingParams(**{"max_tokens": 9, "constraint": languages(260, [257])["pairs"], **sampling})
    asked = Submission(request_id="r", prompt_ids=[1, 2], sampling=params, diffusion=DiffusionParams())
    with pytest.raises(InvalidRequest, match=words) as refused:
        engine.new_request(asked)
    assert refused.value.param == param


def large(vocab, states):
    """Any text of up to so many tokens, counted."""
    onwards = [{0: at + 1, 1: at + 2, 2: at} for at in range(states - 2)]
    return automaton(vocab, [*onwards, {}, {}], [states - 2], [257])


@pytest.mark.parametrize(
    ("param", "words", "diffusion"),
    [
        ("diffusion.block_length", "lower it to 26,", {"block_length": 30}),
        ("diffusion.unmask", "take another policy", {"unmask": "dream"}),
        ("diffusion.unmask", "take another policy", {"unmask": "cad"}),
        (None, "", {"block_length": 26}),
        (None, "", {"unmask": "cad", "max_block_length": 26, "initial_block_length": 20}),
    ],
)
def test_an_automaton_too_large_for_a_block_is_refused(engine, monkeypatch, param, words, diffusion):
    constraint = large(260, 12)
    monkeypatch.setattr("engine.scheduling.checks.constraint.MOST_EDGES", 26 * len(constraint.edge_src) + 5)
    asked = request("r", constraint, max_tokens=64, **diffusion)
    if param is None:
        assert engine.new_request(asked)
        return
    with pytest.raises(InvalidRequest, match=words) as refused:
        engine.new_request(asked)
    assert refused.value.param == param


def test_so_are_too_many_classes(engine, monkeypatch):
    monkeypatch.setattr("engine.scheduling.checks.constraint.MOST_CLASSES", 40)
    with pytest.raises(InvalidRequest, match=r"lower it to \d,"):
        engine.new_request(request("r", large(260, 12), max_tokens=64, block_length=30))
    monkeypatch.setattr("engine.scheduling.checks.constraint.MOST_CLASSES", 1)
    with pytest.raises(InvalidRequest, match="no block is short enough") as refused:
        engine.new_request(request("r", large(260, 12), max_tokens=64, block_length=30))
    assert refused.value.param == "max_tokens"


def test_holes_are_refused(engine):
    asked = request("r", languages(260, [257])["pairs"], max_tokens=4, prompt=[1, 2, 3])
    with pytest.raises(InvalidRequest, match="holes") as refused:
        engine.new_request(replace(asked, holes=(Hole(1, 4),)))
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("spoilt", ["dead", "no way"])
def test_a_fault_in_one_chain_is_its_own(llada_tiny, run, monkeypatch, caplog, spoilt):
    """A state that no answer is left from, which would be a bug, ends one request alone; nothing is computed twice."""
    asked = [request(f"{n}", languages(260, [257])["pairs"], max_tokens=9, seed=n, temperature=1.0) for n in range(3)]
    asked[1] = replace(asked[1], sampling=replace(asked[1].sampling, top_p=0.5))
    whole = served(llada_tiny, run, asked)
    engine = load(EngineConfig(model=str(llada_tiny)))
    requests = [engine.new_request(one) for one in asked]
    if spoilt == "dead":
        requests[1].state = requests[1].constraint.dead
    else:  # what stands there fits nowhere
        requests[1].ids[5], requests[1].masked[5] = 259, False
    for one in requests:
        engine.submit(one)
    tries = []
    forward = engine._forward_and_score
    monkeypatch.setattr(engine, "_forward_and_score", lambda plans: tries.append(len(plans)) or forward(plans))
    ends = {}
    while engine.request_ids:
        for output in engine.step():
            ends[output.request_id] = output
    assert ends["1"].finish_reason is FinishReason.ERROR
    assert "nothing can satisfy" in caplog.text
    assert [ends[name].token_ids for name in ("0", "2")] == [tuple(whole[name][0]) for name in ("0", "2")]
    assert tries[0] == 3
    assert set(tries[1:]) <= {1, 2}
