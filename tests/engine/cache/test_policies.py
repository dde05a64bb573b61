"""Cache policies row by row, and `window` against `dual`."""

import random

import numpy as np
import pytest

from engine import DiffusionParams, EngineConfig, load
from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.params import SamplingParams
from engine.core.requests.block import Block
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from tests.engine.toys import FULL_ATTENTION_CACHES


def opened(shift=0, index=0, step=0, **diffusion):
    """A prompt of 10 and 6 blocks of 8, of which the one with this index is open."""
    spec = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset(), max_model_len=96, shift=shift)
    made = Request.new(
        Submission(
            request_id="r",
            prompt_ids=[1] * 10,
            sampling=SamplingParams(max_tokens=48),
            diffusion=DiffusionParams(**{"block_length": 8, "lookahead": None, **diffusion}),
        ),
        spec,
    )
    start = 10 + 8 * index
    fresh, lookahead = made.block.visible_end if index else 0, made.diffusion.lookahead
    made.block = Block.opened(made.masked, start, start + 8, index=index, fresh=fresh, lookahead=lookahead)
    made.block.step = step
    return made


def rows(cache, **where):
    return CACHES[cache].plan(opened(**where)).rows.tolist()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", FULL_ATTENTION_CACHES)
def test_the_very_first_step_computes_everything(cache, shift):
    assert rows(cache, shift=shift) == list(range(58))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("where", "start", "end"),
    [
        ({"index": 2, "step": 1}, 26, 34),  # inside a block: the block alone
        ({"index": 2, "refresh_before": 0, "refresh_after": 0}, 26, 34),
        ({"index": 2, "refresh_before": 3, "refresh_after": 5}, 23, 39),
        ({"index": 5, "refresh_before": 3, "refresh_after": 5}, 47, 58),  # the canvas ends
    ],
)
def test_window_recomputes_what_is_round_the_block(where, start, end, shift):
    assert rows("window", shift=shift, **where) == list(range(start - shift, end))


def test_window_reaches_into_the_prompt_but_not_before_it():
    assert rows("window", index=1, refresh_before=100, refresh_after=0) == list(range(26))


def test_window_recomputes_the_prompt_every_so_many_blocks():
    window = list(range(31, 47))
    asked = {"index": 3, "refresh_before": 3, "refresh_after": 5}
    assert rows("window", prompt_refresh=0, **asked) == window
    assert rows("window", prompt_refresh=2, **asked) == window
    assert rows("window", prompt_refresh=3, **asked) == [*range(10), *window]
    assert rows("window", step=1, prompt_refresh=3, **asked) == list(range(34, 42))


@pytest.mark.parametrize("shift", [0, 1])
def test_delayed_leaves_alone_what_a_step_has_computed_with_its_token(shift):
    """Of the block [34, 42), 35 and 38 were decoded before, 36 and 41 in the last step."""
    asked = opened(shift=shift, index=3, step=2, cache="delayed")
    asked.masked[[35, 36, 38, 41]] = False
    asked.history.decoded = np.array([36, 41])
    sources = [33, 36, 38, 39] if shift else []
    assert CACHES["delayed"].plan(asked).rows.tolist() == sorted({34, 36, 37, 39, 40, 41, *sources})


def test_delayed_opens_blocks_as_window_does():
    where = {"index": 3, "refresh_before": 3, "refresh_after": 5, "prompt_refresh": 3}
    assert rows("delayed", **where) == rows("window", **where)


def test_delayed_is_window_where_every_step_has_new_tokens_only(engine, submission, run):
    """With two steps a block, all that is known was decoded in the step before."""
    row = {"prompt": [5, 6, 7], "gen_length": 32, "block_length": 8, "unmask": "fixed", "steps": 8}
    assert run(engine, submission("r", cache="delayed", **row)) == run(engine, submission("r", cache="window", **row))


@pytest.mark.parametrize("fixture", ["llada_tiny", "dream_tiny"])
def test_a_huge_window_is_dual(fixture, request, submission, run):
    engine = load(EngineConfig(model=str(request.getfixturevalue(fixture))))
    rng = random.Random(3)
    rows = [
        {
            "prompt": [rng.randrange(200) for _ in range(rng.randint(1, 40))],
            "block_length": (block := rng.choice([4, 8, 16])),
            "gen_length": block * rng.randint(1, 4),
            "unmask": rng.choice(["fixed", "threshold"]),
            "threshold": rng.choice([0.05, 0.6]),
            "temperature": rng.choice([0.0, 1.0]),
            "prompt_refresh": rng.randint(0, 3),
        }
        for _ in range(9)
    ]
    dual = run(engine, *(submission(number, cache="dual", **row) for number, row in enumerate(rows)))
    huge = {"cache": "window", "refresh_before": 9999, "refresh_after": 9999}
    assert run(engine, *(submission(number, **huge, **row) for number, row in enumerate(rows))) == dual


@pytest.mark.slow
def test_window_beside_others_is_window_alone(engine, submission, run):
    """With gaps between its rows, too."""
    rng = random.Random(4)
    asked = [
        submission(
            number,
            prompt=[rng.randrange(256) for _ in range(rng.randint(1, 40))],
            block_length=8,
            gen_length=8 * rng.randint(2, 5),
            cache=rng.choice(["window", "delayed", "dual"]),
            refresh_before=rng.randint(0, 10),
            refresh_after=rng.randint(0, 10),
            prompt_refresh=rng.randint(0, 2),
        )
        for number in range(7)
    ]
    together = run(engine, *asked)
    for one in asked:
        assert run(engine, one) == {one.request_id: together[one.request_id]}
