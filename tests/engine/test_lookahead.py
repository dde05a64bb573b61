"""`lookahead`: what is visible, which rows that costs, and the same tokens as a plain loop over the visible canvas."""

import random
from itertools import cycle

import numpy as np
import pytest

from engine import EngineConfig, load
from engine.bench.reference import fixed, threshold
from engine.core.requests.block import Block
from tests.engine.toys import EACH_POLICY, EVERY_PAIR, FULL_ATTENTION_CACHES

from .visible_twin import decode


@pytest.fixture
def tiny(fixture, request):
    return load(EngineConfig(model=str(request.getfixturevalue(fixture)), page_size=16))


@pytest.mark.parametrize(
    ("known", "end", "lookahead", "visible_end"),
    [
        ([], 18, None, 58),
        ([], 18, 0, 18),
        ([], 18, 8, 26),
        ([], 18, 39, 57),
        ([], 18, 40, 58),
        ([], 18, 1000, 58),
        ([], 58, 8, 58),
        ([30], 18, 8, 31),  # text behind a hole is always visible
        ([30, 57], 18, 0, 58),
        ([20], 18, 8, 26),
    ],
)
def test_how_far_an_open_block_sees(known, end, lookahead, visible_end):
    masked = np.arange(58) >= 10
    masked[known] = False
    block = Block.opened(masked, end - 8, end, index=3, fresh=12, lookahead=lookahead)
    assert block == Block(3, end - 8, end, int(masked[end - 8 : end].sum()), fresh=12, visible_end=visible_end)


@pytest.mark.parametrize(
    ("fixture", "pairs"),
    [("dream_tiny", EACH_POLICY), pytest.param("llada_tiny", EVERY_PAIR, marks=pytest.mark.slow)],
    ids=["each", "every"],
)
def test_a_lookahead_that_covers_the_canvas_changes_nothing(tiny, submission, run, pairs):
    rng = random.Random(5)
    rows = [
        {
            "prompt": [rng.randrange(256) for _ in range(rng.choice([1, 5, 23]))],
            "gen_length": 16,
            "cache": cache,
            "unmask": unmask,
            "block_length": 8,
            "threshold": 0.6,
            "steps": 6,
            "temperature": rng.choice([0.0, 0.8]),
            "current_k": 8,
            "seed": 3,
        }
        for cache, unmask in pairs
    ]
    whole, covered, vast = (
        run(tiny, *(submission(number, **row, lookahead=some) for number, row in enumerate(rows)))
        for some in (None, 16, 10**9)
    )
    assert whole == covered == vast


@pytest.mark.parametrize("fixture", ["dream_tiny", "llada_tiny"])
def test_the_same_tokens_as_a_plain_loop(tiny, submission, run):
    rng = random.Random(4)
    rules = {"threshold": threshold(0.6), "fixed": fixed(8, 4)}
    prompts = [[rng.randrange(256) for _ in range(length)] for length in (41, 5)]
    shapes = [
        {"prompt": prompt, "gen_length": 24, "block_length": 8, "cache": cache, "lookahead": lookahead}
        for cache in ("none", "prefix", "dual", "window", "delayed")
        for prompt, lookahead in zip(cycle(prompts), (0, 4, 8, 12), strict=False)
    ]
    asked = [*zip(shapes, cycle(["threshold", "threshold", "fixed"]), strict=False)]
    got = run(
        tiny,
        *(
            submission(number, **shape, unmask=unmask, threshold=0.6, steps=12, ignore_eos=True)
            for number, (shape, unmask) in enumerate(asked)
        ),
    )
    for number, (shape, unmask) in enumerate(asked):
        tokens, _, usage = got[str(number)]
        plain = decode(tiny.runner.model, tiny.info.spec, rule=rules[unmask], **shape)
        assert (tokens, usage.forwards, usage.rows_computed) == plain, (shape, unmask)


def rows_of(engine, asked):
    """For each step: the open block's first position, the rows, and one past the last that they see."""
    engine.submit(engine.new_request(asked))
    steps = []
    schedule = engine.scheduler.schedule

    def watched():
        plans = schedule()
        steps.extend((p.request.block.start, p.rows.tolist(), int(p.horizons[0])) for p in plans)
        return plans

    engine.scheduler.schedule = watched
    while engine.request_ids:
        engine.step()
    return steps


@pytest.mark.parametrize("cache", ["window", "delayed"])
def test_what_becomes_visible_is_computed_when_the_block_opens(engine, submission, cache):
    """A prompt of 3, blocks of 8 that see 12 more: [3, 11) sees 23, [11, 19) sees 31, [19, 27) sees 35, the end."""
    asked = submission(
        prompt=[5, 6, 7], gen_length=32, block_length=8, lookahead=12, cache=cache, refresh_before=2,
        unmask="threshold", threshold=0.0, ignore_eos=True,
    )  # fmt: skip
    steps = rows_of(engine, asked)
    assert steps == [
        (3, list(range(23)), 23),
        (11, [*range(3, 19), *range(23, 31)], 31),
        (19, [*range(11, 27), *range(31, 35)], 35),
        (27, [*range(19, 35)], 35),
    ]


def test_d2_looks_no_farther_and_computes_what_becomes_visible(engine, submission):
    asked = submission(
        prompt=[5, 6, 7], gen_length=64, block_length=8, lookahead=8, cache="d2", unmask="threshold", threshold=0.4,
        current_k=4, inflate_w=0, rollout_p=1.0, ignore_eos=True,
    )  # fmt: skip
    steps = rows_of(engine, asked)
    seen = 0
    for start, rows, horizon in steps:
        assert horizon == min(start + 16, 67)
        assert set(range(seen, horizon)) <= set(rows) <= set(range(horizon))
        seen = horizon
    assert seen == 67


@pytest.mark.slow
@pytest.mark.parametrize("cache", FULL_ATTENTION_CACHES)
def test_text_behind_a_hole_is_always_visible(engine, submission, run, cache):
    """Holes before known text see all of the canvas; a hole at its end is an answer like any other."""
    inner = {"prompt": list(range(20, 40)), "holes": [(4, 12), (9, 20)], "gen_length": 32, "block_length": 8}
    assert run(engine, submission(**inner, cache=cache, lookahead=0)) == run(engine, submission(**inner, cache=cache))
    outer = {**inner, "holes": [(4, 12), (20, 20)]}
    [(bounded, _, cost)] = run(engine, submission(**outer, cache=cache, lookahead=0, ignore_eos=True)).values()
    [(_, _, whole)] = run(engine, submission(**outer, cache=cache, ignore_eos=True)).values()
    assert len(bounded) == 32
    assert cache == "d2" or cost.rows_computed < whole.rows_computed


@pytest.mark.slow
def test_mixed_lookaheads_on_a_pool_of_two_canvases(dream_tiny, submission, run):
    """Everybody gets what it gets alone, everybody ends, all pages come back, and more run than canvases fit."""
    rng, tiny = random.Random(5), load(EngineConfig(model=str(dream_tiny), page_size=16))
    asked = [
        submission(
            number,
            prompt=[rng.randrange(256) for _ in range(rng.randrange(3, 30))],
            gen_length=rng.choice((16, 32, 48)),
            cache=rng.choice(FULL_ATTENTION_CACHES),
            threshold=0.6,
            block_length=rng.choice((8, 16)),
            lookahead=rng.choice((None, 0, 8, 24)),
            temperature=rng.choice((0.0, 0.7)),
            seed=number,
        )
        for number in range(14)
    ]
    alone = {}
    for one in asked:
        alone |= run(tiny, one)
    small = load(EngineConfig(model=str(dream_tiny), page_size=8, kv_cache_tokens=160, max_model_len=80))
    most, waited, scattered = 0, 0, 0
    schedule = small.scheduler.schedule

    def watched():
        nonlocal most, waited, scattered
        plans = schedule()
        running = small.scheduler.running
        most = max(most, len(running))
        waited += sum(len(one.slots) < one.block.visible_end for one in running)
        scattered += sum((np.diff(one.pages) < 0).any() for one in running)
        return plans

    small.scheduler.schedule = watched
    assert run(small, *asked) == alone
    assert small.stats().kv_pages_used == 0
    assert most > 2
    assert waited, "nobody ever waited for a page: the pool is too large to show anything"
    assert scattered, "all page tables ascended"


def test_a_short_answer_never_takes_the_pages_of_its_canvas(engine, submission):
    """One block of eight is open: its pages, and no more."""
    engine.submit(engine.new_request(submission(prompt=[5, 6, 7], gen_length=256, block_length=32, lookahead=32)))
    engine.step()
    assert engine.stats().kv_pages_used == 3  # 3 + 32 + 32 positions, of the canvas's 259
