"""Models that commit causally: what their requests share, and what may be asked of their answers."""

import numpy as np
import pytest

from engine import DiffusionParams, FinishReason, SamplingParams, Submission
from tests.engine.automata import automaton
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS
from tests.golden.through_engine import engine_of

PROMPT = [number % 90 + 1 for number in range(70)]
MODES = {
    "diffusion": {"threshold": 0.2},
    "blocks of four": {"block_length": 4},
    "autoregressive": {"block_length": 1},
    "self-speculation": {"unmask": "linear_spec"},
    "no first token": {"causal_first": False, "unmask": "leftmost"},
}


def asked(name, prompt=PROMPT, max_tokens=16, sampling=None, **diffusion):
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **(sampling or {})}),
        diffusion=DiffusionParams(**diffusion),
    )


@pytest.fixture(scope="module")
def apart(nemotron_tiny, run):
    """What each mode answers where nothing is shared."""
    engine = engine_of(nemotron_tiny, prefix_caching=False)
    return {mode: run(engine, asked(mode, **diffusion))[mode][0] for mode, diffusion in MODES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("first", MODES)
def test_equal_beginnings_are_shared_between_modes_and_block_lengths(nemotron_tiny, run, apart, first):
    engine = engine_of(nemotron_tiny, page_size=16)
    run(engine, asked("first", max_tokens=1, **MODES[first]))
    answers = run(engine, *(asked(mode, **diffusion) for mode, diffusion in MODES.items()))
    assert {usage.cached_tokens for *_, usage in answers.values()} == {64}, "all whole pages of the prompt"
    assert {mode: tokens for mode, (tokens, *_) in answers.items()} == apart


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_is_whole_pages_is_shared_but_for_what_says_or_drafts_the_first_token(nemotron_tiny, run, mode):
    """The row that says it is computed again, and written nowhere; the row that a draft begins with is not shared."""
    engine, prompt = engine_of(nemotron_tiny, page_size=16), PROMPT[:64]
    [(tokens, *_)] = run(engine, asked("first", prompt, **MODES[mode])).values()
    before = engine.stats().rows_computed
    [(again, _, usage)] = run(engine, asked("again", prompt, **MODES[mode])).values()
    assert again == tokens
    assert usage.cached_tokens == (48 if mode == "self-speculation" else 64)
    assert usage.rows_computed == engine.stats().rows_computed - before


@pytest.mark.parametrize("mode", MODES)
def test_a_second_turn_finds_the_first_ones_answer(nemotron_tiny, run, mode):
    engine = engine_of(nemotron_tiny, page_size=4)
    [(answer, *_)] = run(engine, asked("first", PROMPT[:40], max_tokens=24, **MODES[mode])).values()
    second = [*PROMPT[:40], *answer, 7, 8, 9]
    [(tokens, _, usage)] = run(engine, asked("second", second, **MODES["autoregressive"])).values()
    assert usage.cached_tokens >= 40 + 24 - 8 - 4, "all but its last block, and what a page holds beside it"
    assert tokens == run(engine_of(nemotron_tiny), asked("second", second, **MODES["autoregressive"]))["second"][0]


LEFT, RIGHT = range(101, 150), range(150, 200)


@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize("causal_first", [True, False])
def test_constrained_answers_are_valid_in_every_mode_but_self_speculation(nemotron_tiny, run, length, causal_first):
    """Three to nine tokens, of two kinds by turns."""
    by_turns = [dict.fromkeys(LEFT if at % 2 else RIGHT, at + 1) for at in range(9)]
    constraint = automaton(256, [*by_turns, {}], range(3, 10), [11])
    crowd = [
        asked(
            f"{unmask} {temperature} {room}",
            PROMPT[: 3 + room],
            max_tokens=3 + room,
            sampling={"constraint": constraint, "temperature": temperature, "seed": room, "ignore_eos": False},
            unmask=unmask,
            block_length=length,
            causal_first=causal_first,
        )
        for unmask in BLOCK_CAUSAL_UNMASKS
        for temperature in (0.0, 1.0)
        for room in (0, 6)
    ]
    for name, (tokens, reason, _) in run(engine_of(nemotron_tiny), *crowd).items():
        state = constraint.advanced(0, np.array(tokens, np.int64))
        assert reason is FinishReason.STOP, name
        assert state < constraint.end, (name, tokens)
        assert constraint.accepts[state], (name, tokens)
