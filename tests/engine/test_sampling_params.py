"""What each sampling parameter does to whole answers of the tiny model, alone and in any company."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from engine import DiffusionParams, FinishReason, InvalidRequest, SamplingParams, Submission
from engine.bench.reference import DenseContext
from tests.engine.toys import EACH_POLICY, EVERY_PAIR, FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS

from .faulty import outputs as answers

MASK = 256


def ask(request_id="r", prompt=(5, 6, 7), length=32, unmask="threshold", cache="dual", diffusion=(), **sampling):
    diffusion = {"block_length": 16, "threshold": 0.05, **dict(diffusion)}
    return Submission(
        request_id=str(request_id),
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=length, **sampling),
        diffusion=DiffusionParams(unmask=unmask, cache=cache, **diffusion),
    )


def tokens_of(outputs):
    return [token for output in outputs for token in output.token_ids]


def decoded(engine, *submissions):
    return {name: tokens_of(outputs) for name, outputs in answers(engine, *submissions).items()}


EDITS = [
    {},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5, "temperature": 0.7},
    {"repetition_penalty": 1.3, "logit_bias": ((4, 3.0), (9, -100.0), (MASK, 2.0)), "min_p": 0.02},
    {"allowed_ids": frozenset(range(40)), "bad_words": ((1,), (2, 3), (5, 6, 7)), "temperature": 1.5},
    {"min_tokens": 20, "bad_words": ((7, 1), (3, 3)), "top_p": 0.9, "temperature": 1.0},
    {"allowed_ids": frozenset({77}), "temperature": 0.3},
    {"frequency_penalty": 2.0, "min_tokens": 5, "stop_ids": frozenset(range(30)), "top_k": 9, "temperature": 0.5},
]


@pytest.mark.parametrize(
    "pairs", [EACH_POLICY, pytest.param(EVERY_PAIR, marks=pytest.mark.slow)], ids=["each", "every"]
)
def test_a_request_is_itself_among_others_of_every_policy_temperature_and_edit(engine, pairs):
    """In slow tests every pair of policies, else each policy; nine requests at a time, in random order.

    With and without log-probabilities.
    """
    rng = random.Random(4)
    assert {cache for cache, _ in pairs} == {*FULL_ATTENTION_CACHES}
    assert {unmask for _, unmask in pairs} == {*FULL_ATTENTION_UNMASKS}
    asked = []
    for number, (cache, unmask) in enumerate(pairs):
        prompt = [rng.randrange(260) for _ in range(rng.randint(1, 30))]
        logprobs = rng.choice([None, 0, 3, 20])
        edit = {**EDITS[number % len(EDITS)], "seed": number, "logprobs": logprobs}
        diffusion = {"block_length": 8, "steps": 12, "lookahead": rng.choice([None, 0, 5, 8])}
        asked.append(ask(number, prompt, 24, unmask, cache, diffusion, **edit))
    alone = {}
    for submission in asked:
        alone |= answers(engine, submission)
    together = {}
    rng.shuffle(asked)
    for first in range(0, len(asked), 9):
        together |= answers(engine, *asked[first : first + 9])
    for name, outputs in together.items():
        assert [replace(o, logprobs=None) for o in outputs] == [replace(o, logprobs=None) for o in alone[name]]
        for mine, other in zip(outputs, alone[name], strict=True):
            assert (mine.logprobs is None) == (other.logprobs is None)
            for one, two in zip(mine.logprobs or (), other.logprobs or (), strict=True):
                assert one.logprob == pytest.approx(two.logprob, abs=1e-5)
                assert [v for _, v in one.top] == pytest.approx([v for _, v in two.top], abs=1e-5)
    assert {len(o.logprobs) - len(o.token_ids) for outs in alone.values() for o in outs if o.logprobs} == {0}


def test_frequency_penalty_makes_an_answer_less_repetitive(engine):
    asked = {"plain": {}, "less": dict.fromkeys(("frequency_penalty", "presence_penalty"), 2.0)}
    asked["more"] = {name: -penalty for name, penalty in asked["less"].items()}
    made = decoded(
        engine, *(ask(name, unmask="fixed", length=64, ignore_eos=True, **some) for name, some in asked.items())
    )
    most = {name: max(Counter(tokens).values()) for name, tokens in made.items()}
    assert most["less"] < most["plain"] < most["more"]


def test_a_repetition_penalty_keeps_away_from_the_prompt(engine):
    """Its tokens are the only ones without a penalty of -100, but for one."""
    prompt = list(range(10))
    asked = {"allowed_ids": frozenset(range(11)), "unmask": "fixed", "logit_bias": tuple((t, -50.0) for t in range(11))}
    assert len(set(decoded(engine, ask(prompt=prompt, **asked))["r"])) > 1
    asked["repetition_penalty"] = 3.0
    asked["logit_bias"] += ((10, 20.0),)
    # Token 10 is penalised too, once it is there: the first one decoded is sure to be it.
    first = decoded(engine, ask(prompt=prompt, length=1, diffusion={"block_length": 1}, **asked))["r"]
    assert first == [10]


def test_a_bias_can_force_a_token_and_ban_one(engine):
    assert decoded(engine, ask(logit_bias=((44, 100.0),)))["r"] == [44] * 32
    plain = decoded(engine, ask(unmask="fixed", ignore_eos=True))["r"]
    banned = tuple((token, -100.0) for token in set(plain))
    assert set(plain).isdisjoint(decoded(engine, ask(unmask="fixed", ignore_eos=True, logit_bias=banned))["r"])


def test_min_p_of_one_is_greedy_and_of_little_is_not(engine):
    asked = {"greedy": {}, "one": {"temperature": 2.0, "min_p": 1.0}, "little": {"temperature": 2.0, "min_p": 0.001}}
    made = decoded(engine, *(ask(name, unmask="fixed", seed=3, **sampling) for name, sampling in asked.items()))
    assert made["one"] == made["greedy"] != made["little"]


def holds(submission, tokens, word):
    """Whether the answer, or prompt and answer together, hold this word."""
    canvas, length = [*submission.prompt_ids, *tokens], len(word)
    starts = range(max(len(submission.prompt_ids) - length + 1, 0), len(canvas) - length + 1)
    return any(tuple(canvas[start : start + length]) == word for start in starts)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "d2"])
def test_bad_words_never_appear(engine, cache):
    """Of twelve tokens, drawn many at once by every policy: without the ban about half of the answers hold one."""
    rng, asked = random.Random(8), []
    for number in range(3 * len(FULL_ATTENTION_UNMASKS)):
        words = tuple(tuple(rng.randrange(12) for _ in range(length)) for length in (1, 2, 2, 3))
        asked.append(
            ask(
                number,
                [rng.randrange(12) for _ in range(5)],
                unmask=FULL_ATTENTION_UNMASKS[number % len(FULL_ATTENTION_UNMASKS)],
                cache=cache,
                diffusion={
                    "threshold": 0.0,
                    "factor": 1e6,
                    "gamma": 1e6,
                    "steps": 4,
                    "initial_block_length": 16,
                    "lookahead": (None, 0, 8)[number % 3],
                },
                allowed_ids=frozenset(range(12)),
                ignore_eos=True,
                temperature=2.0,
                seed=number,
                bad_words=words,
            )
        )

    def holding(submissions):
        results = decoded(engine, *submissions)
        words = [(s, word) for s, whole in zip(submissions, asked, strict=True) for word in whole.sampling.bad_words]
        return {s.request_id for s, word in words if holds(s, results[s.request_id], word)}

    assert len(holding([replace(s, sampling=replace(s.sampling, bad_words=())) for s in asked])) > 12
    assert holding(asked) == set()


def test_bad_words_cost_steps_only_where_they_would_be_completed(engine):
    steps = answers(engine, ask(unmask="threshold", diffusion={"threshold": 0.0}))["r"][-1].usage.forwards
    assert steps == 2, "one for each block"
    harmless = ask(unmask="threshold", diffusion={"threshold": 0.0}, bad_words=((250, 251, 252, 253, 254, 255),))
    assert answers(engine, harmless)["r"][-1].usage.forwards == 2
    same = {"logit_bias": ((3, 100.0),), "diffusion": {"threshold": 0.0}}
    [first, *_] = answers(engine, ask(bad_words=((3, 3),), **same))["r"]
    assert not any(one == other == 3 for one, other in pairwise(first.token_ids))
    assert first.usage.forwards > 1


def test_min_tokens_holds(engine):
    """A model that wants to end at once may do so behind them, and there it does: under each policy."""
    eos, *_ = ends = sorted(engine.info.spec.eos_ids)

    def each(**sampling):
        asked = {"logit_bias": ((eos, 100.0), (8, 90.0)), "stop_ids": frozenset({8}), **sampling}
        every = (ask(unmask, unmask=unmask, cache=cache, **asked) for cache, unmask in EACH_POLICY)
        return answers(engine, *every).values()

    for [at_once] in each():
        assert (at_once.token_ids, at_once.finish_reason, at_once.stop_id) == ((), FinishReason.STOP, eos)
    for outputs in each(min_tokens=21):
        assert len(tokens_of(outputs)) == 21
        assert {*ends, 8, MASK}.isdisjoint(tokens_of(outputs))
        assert (outputs[-1].finish_reason, outputs[-1].stop_id) == (FinishReason.STOP, eos)


def test_the_token_that_ended_it_is_told(engine):
    asked = {"logit_bias": ((8, 100.0),), "min_tokens": 3, "length": 16}
    [output] = answers(engine, ask(stop_ids=frozenset({8, 9}), **asked))["r"]
    assert (output.stop_id, len(output.token_ids)) == (8, 3)
    [output] = answers(engine, ask(**asked))["r"]
    assert (output.stop_id, output.finish_reason) == (None, FinishReason.LENGTH)


def log_softmax(engine, ids):
    model = engine.runner.model
    with torch.inference_mode():
        context = DenseContext(model, len(ids))
        return model.logits(model(torch.tensor(ids), torch.arange(len(ids)), context)).double().log_softmax(-1)


def test_one_allowed_token_scores_it(engine):
    """What scoring a text token by token needs: the model's own word on a token it would not say."""
    prompt = [5, 6, 7, 8]
    asked = [
        ask(token, prompt, 1, diffusion={"block_length": 1}, allowed_ids=frozenset({token}), logprobs=5, temperature=t)
        for token, t in ((3, 0.0), (70, 1.0), (200, 2.0))
    ]
    expected = log_softmax(engine, [*prompt, MASK])[-1]
    for name, [output] in answers(engine, *asked).items():
        assert output.token_ids == (int(name),)
        [told] = output.logprobs
        assert told.logprob == pytest.approx(float(expected[int(name)]), abs=1e-5)
        best = [token for token in expected.argsort(descending=True).tolist() if token != MASK][:5]
        assert [token for token, _ in told.top] == best
        assert [value for _, value in told.top] == pytest.approx([float(expected[t]) for t in best], abs=1e-5)


def test_log_probabilities_are_of_the_step_that_decodes_the_token(engine):
    """One token a step, without a cache: each from the canvas as it was before."""
    asked = ask(length=6, unmask="fixed", cache="none", diffusion={"block_length": 6}, temperature=1.0, logprobs=2)
    request = engine.new_request(replace(asked, sampling=replace(asked.sampling, ignore_eos=True, top_k=4)))
    engine.submit(request)
    canvas, told = request.ids.copy(), {}
    while engine.request_ids:
        expected, before = log_softmax(engine, canvas.tolist()), request.masked.copy()
        outputs = engine.step()
        [position] = (before & ~request.masked).nonzero()[0].tolist()
        canvas[position] = request.ids[position]
        told[position] = float(expected[position, canvas[position]])
    [output] = outputs
    assert [row.logprob for row in output.logprobs] == pytest.approx([told[p] for p in sorted(told)], abs=1e-5)
    assert {len(row.top) for row in output.logprobs} == {2}


def test_nobody_gets_log_probabilities_unasked(engine):
    quiet, asked = ask("quiet"), ask("asked", logprobs=0)
    both = answers(engine, quiet, asked)
    assert {output.logprobs for output in both["quiet"]} == {None}
    assert all(row.top == () for output in both["asked"] for row in output.logprobs)


def test_the_engine_refuses_what_it_cannot_serve(engine):
    with pytest.raises(InvalidRequest, match="mask token"):
        engine.new_request(ask(allowed_ids=frozenset({MASK})))
