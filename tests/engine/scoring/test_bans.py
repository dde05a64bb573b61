"""Bad words on a canvas in any order, against plain searches of it, and what checks refuse before."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import ModelSpec
from engine.core.errors import InvalidRequest
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Scores
from engine.scheduling.checks.submission import check
from engine.scoring.bans import bans, hold_back
from engine.unmask.policies import effective, select
from tests.engine.toys import FULL_ATTENTION_UNMASKS

MASK, EOS = 9, 8
SPEC = ModelSpec(family="toy", vocab_size=10, mask_id=MASK, eos_ids=frozenset({EOS}), max_model_len=4096)
TOKENS = st.integers(0, 2)


def submission(prompt=(0, 1), length=6, unmask="threshold", **sampling):
    sampling = SamplingParams(max_tokens=sampling.pop("max_tokens", length), **sampling)
    diffusion = DiffusionParams(block_length=length, unmask=unmask, threshold=0.0, factor=1e9, gamma=1e9, steps=1)
    return effective(Submission(request_id="r", prompt_ids=prompt, sampling=sampling, diffusion=diffusion))


def request(tokens, **asked):
    """A canvas with these tokens decoded; None is still masked."""
    new = Request.new(submission(length=len(tokens), **asked), SPEC)
    for position, token in enumerate(tokens, start=new.num_prompt_tokens):
        if token is not None:
            new.ids[position], new.masked[position] = token, False
    return new


CANVAS = st.lists(TOKENS | st.none(), min_size=1, max_size=10).filter(lambda tokens: None in tokens)
WORDS = st.lists(st.lists(TOKENS, min_size=1, max_size=4).map(tuple), max_size=8).map(tuple)


def found(word, canvas):
    return [start for start in range(len(canvas) - len(word) + 1) if canvas[start : start + len(word)] == list(word)]


def canvas_of(request):
    return [None if hidden else int(token) for token, hidden in zip(request.ids, request.masked, strict=True)]


@given(tokens=CANVAS, words=WORDS, min_tokens=st.integers(0, 1))
def test_a_ban_is_what_would_complete_a_bad_word(tokens, words, min_tokens):
    asked = request(tokens, bad_words=words, min_tokens=min_tokens)
    indices, banned = bans(asked, asked.targets)
    expected = set()
    for index, position in enumerate(asked.targets.tolist()):
        for token in range(10):
            canvas = canvas_of(asked)
            canvas[position] = token
            for word in words:
                if len(word) > 1 and any(s <= position < s + len(word) for s in found(word, canvas)):
                    expected.add((index, token))
        if position < asked.num_prompt_tokens + min_tokens:
            expected.add((index, EOS))
    assert set(zip(indices.tolist(), banned.tolist(), strict=True)) == expected


@given(tokens=CANVAS, words=WORDS, data=st.data())
def test_what_is_committed_together_completes_no_bad_word(tokens, words, data):
    asked = request(tokens, bad_words=words)
    count = len(asked.targets)
    log_odds = data.draw(st.lists(st.floats(-9, 9) | st.just(inf), min_size=count, max_size=count))
    proposed = np.array(data.draw(st.lists(TOKENS, min_size=count, max_size=count)))
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any)))
    kept = hold_back(asked, Scores(asked.targets, proposed, np.array(log_odds)), chosen)
    assert kept.any()
    assert not (kept & ~chosen).any()

    def completed(chosen):
        """The places of bad words that two or more tokens of this choice are part of."""
        canvas, new = canvas_of(asked), set(asked.targets[chosen].tolist())
        for position, token in zip(asked.targets[chosen], proposed[chosen], strict=True):
            canvas[position] = int(token)
        spans = (range(start, start + len(word)) for word in words for start in found(word, canvas))
        return [new.intersection(span) for span in spans if len(new.intersection(span)) > 1]

    assert not completed(kept)
    odds = dict(zip(asked.targets.tolist(), log_odds, strict=True))
    for position in asked.targets[chosen & ~kept].tolist():
        together = [places for places in completed(chosen) if position in places]
        assert any(odds[position] == min(odds[p] for p in places) for places in together), "surer than the others"


@pytest.mark.parametrize("unmask", FULL_ATTENTION_UNMASKS)
def test_every_policy_holds_back(unmask):
    """All say `1 2 1 2 1 2` at once. After each step there is no `1 2`, and at the end none either."""
    asked = Request.new(submission(unmask=unmask, bad_words=((1, 2), (2, 1, 2))), SPEC)
    steps = 0
    while asked.masked.any():
        targets = asked.targets
        banned = set(zip(*(part.tolist() for part in bans(asked, targets)), strict=True))
        wanted = np.where(targets % 2, 2, 1)
        tokens = np.array([3 if (i, token) in banned else token for i, token in enumerate(wanted.tolist())])
        count = len(targets)
        scores = Scores(targets, tokens, np.linspace(3, 1, count), np.full(count, 0.1), np.full(count, 0.5))
        plan = StepPlan(asked, targets, np.full(count, asked.canvas_end), targets)
        chosen = select(plan, scores)
        assert chosen.any()
        asked.ids[targets[chosen]], asked.masked[targets[chosen]] = tokens[chosen], False
        asked.history.tokens.extend(tokens[chosen].tolist())
        asked.history.mean_confidence.append(0.9)
        asked.block.step += 1
        asked.decoding_steps += 1
        steps += 1
        assert not found((1, 2), canvas_of(asked))
    assert steps > 1


@pytest.mark.parametrize(
    ("param", "words", "sampling"),
    [
        ("logit_bias", "out of vocabulary", {"logit_bias": ((10, 1.0),)}),
        ("logit_bias", "out of vocabulary", {"logit_bias": ((-1, 1.0),)}),
        ("logit_bias", "from -100 to 100", {"logit_bias": ((1, 100.5),)}),
        ("logit_bias", "from -100 to 100", {"logit_bias": ((1, nan),)}),
        ("logit_bias", "from -100 to 100", {"logit_bias": ((1, -inf),)}),
        ("logit_bias", "at most 1024", {"logit_bias": ((1, 1.0),) * 1025}),
        ("allowed_token_ids", "is empty", {"allowed_ids": frozenset()}),
        ("allowed_token_ids", "mask token", {"allowed_ids": frozenset({MASK})}),
        ("allowed_token_ids", "out of vocabulary", {"allowed_ids": frozenset({1, 10})}),
        ("allowed_token_ids", "no token", {"allowed_ids": frozenset({1, MASK}), "bad_words": ((1,),)}),
        ("bad_words", "no token", {"bad_words": tuple((token,) for token in range(9))}),
        ("bad_words", "out of vocabulary", {"bad_words": ((1, 10),)}),
        ("bad_words", "empty entry", {"bad_words": ((1,), ())}),
        ("bad_words", "at most 128", {"bad_words": ((1, 2),) * 129}),
        ("bad_words", "at most 1024", {"bad_words": ((1,) * 1025,)}),
        ("min_tokens", "more than max_tokens", {"min_tokens": 7}),
        (
            "min_tokens",
            "end the answer",
            {"min_tokens": 1, "allowed_ids": frozenset({EOS, 1}), "stop_ids": frozenset({1})},
        ),
        ("stop_token_ids", "out of vocabulary", {"stop_ids": frozenset({10})}),
        ("stop_token_ids", "at most 1024", {"stop_ids": frozenset(range(1025))}),
        ("min_p", "at most 1", {"min_p": 1.5}),
        ("min_p", "at least 0", {"min_p": nan}),
        ("presence_penalty", "at most 2", {"presence_penalty": 2.5}),
        ("frequency_penalty", "at least -2", {"frequency_penalty": -3.0}),
        ("repetition_penalty", "greater than 0", {"repetition_penalty": 0.0}),
        ("repetition_penalty", "less than inf", {"repetition_penalty": inf}),
        ("logprobs", "at most 20", {"logprobs": 21}),
        ("min_tokens", "at least 0", {"min_tokens": -1}),
    ],
)
def test_what_can_never_be_served_is_refused_by_name(param, words, sampling):
    with pytest.raises(InvalidRequest, match=words) as error:
        check(submission(**sampling), SPEC)
    assert error.value.param == param


@pytest.mark.parametrize(
    "sampling",
    [
        {"logit_bias": ((1, 100.0), (2, -100.0), (MASK, 5.0)) + ((3, 0.1),) * 1021},
        {"allowed_ids": frozenset({1, MASK})},
        {"allowed_ids": frozenset({EOS})},
        {"allowed_ids": frozenset({EOS}), "min_tokens": 2, "ignore_eos": True},
        {"bad_words": (*((token,) for token in range(8)), (8, 8))},
        {"bad_words": ((1, 2),) * 128},
        {"bad_words": ((1,) * 1024,)},
        {"min_tokens": 6, "min_p": 1.0, "logprobs": 20, "presence_penalty": -2.0, "repetition_penalty": 1e-300},
    ],
)
def test_what_can_be_served_is_not(sampling):
    check(submission(**sampling), SPEC)
