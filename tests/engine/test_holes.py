"""What holes are to blocks, steps and policies, one at a time; and those that cannot be."""

from dataclasses import replace

import numpy as np
import pytest

from engine import (
    ContextLengthExceeded,
    DiffusionParams,
    FinishReason,
    Hole,
    InvalidRequest,
    SamplingParams,
    Submission,
)
from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores
from engine.scheduling.checks.submission import check
from engine.unmask.policies import UNMASKS

MASK = 256


def opened(row, **diffusion):
    spec = ModelSpec(family="toy", vocab_size=300, mask_id=MASK, eos_ids=frozenset({3}), max_model_len=200)
    return Request.new(
        Submission(
            request_id="r",
            prompt_ids=[1] * 60,
            sampling=SamplingParams(max_tokens=sum(length for _, length in row)),
            diffusion=DiffusionParams(block_length=8, **diffusion),
            holes=tuple(Hole(*hole) for hole in row),
        ),
        spec,
    )


def test_blocks_without_masks_are_neither_opened_nor_given_steps(engine, submission):
    """Masks at 10..14 and 50..57 of 70: blocks of 8 begin at 10, so those at 18, 26, 34 and 42 have none."""
    holes = [(10, 5), (45, 8)]
    asked = submission(prompt=[7] * 57, holes=holes, gen_length=13, block_length=8, unmask="fixed", steps=4)
    request = engine.new_request(asked)
    assert (request.canvas_end, request.answer_start, request.answer_end, request.num_blocks) == (70, 10, 58, 2)
    engine.submit(request)
    blocks, outputs = [], []
    while engine.request_ids:
        blocks.append((request.block.index, request.block.start, request.block.end, request.block.num_masked))
        outputs += engine.step()
    assert blocks == [(0, 10, 18, 5)] * 2 + [(1, 50, 58, 8)] * 2, "four steps over two blocks"
    assert [len(output.token_ids) for output in outputs] == [5, 8]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.LENGTH]
    canvas = request.ids.tolist()
    assert canvas[10:15] + canvas[50:58] == [token for output in outputs for token in output.token_ids]
    assert canvas[:10] + canvas[15:50] + canvas[58:] == [7] * 57, "what was there stays"


def test_window_reaches_back_over_blocks_that_were_skipped():
    """The last tokens of the block before have no keys and values yet, however far away they are."""
    request = opened([(10, 3), (52, 8)], refresh_before=2, refresh_after=4)
    request.masked[10:13] = False
    request.history.decoded = request.answer_positions[1:3]
    request.block = replace(request.block, index=1, start=50, end=58, fresh=request.canvas_end)
    rows = CACHES["window"].plan(request).rows.tolist()
    assert rows == [11, 12, *range(48, 62)]


def test_certainty_sees_what_is_known_behind_a_hole():
    """Of equally confident positions the outer ones are certain, the right one as the left one."""
    request = opened([(20, 8)], unmask="certainty", sigma=2.0, steps=4)
    scores = Scores(request.targets, np.full(8, 5), np.zeros(8))
    assert np.flatnonzero(UNMASKS["certainty"].select(request, scores)).tolist() == [0, 7]
    rows = CACHES["d2"].plan(after_a_step(request, current_k=2)).targets.tolist()
    assert rows == [20, 27], "d2 ranks by the same density"


def after_a_step(request, current_k):
    """The same request after a step that found all masks alike."""
    request.diffusion = replace(request.diffusion, current_k=current_k, rollout_p=0.0, inflate_w=0, sigma=2.0)
    request.forwards = request.block.step = 1
    request.history.confidence[request.answer_positions] = 0.5
    request.history.importance[0] = 1.0
    return request


def test_cad_measures_its_progress_by_what_there_is_to_fill():
    """Four fifths through a hole are four fifths, however much of the prompt comes behind it."""
    sizes = []
    for offset in (10, 60):
        request = opened([(offset, 50)], unmask="cad")
        request.block = replace(request.block, start=offset + 40, end=offset + 50)
        sizes.append(UNMASKS["cad"].needs(request).vocabulary)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("prompt", "holes", "max_tokens", "message"),
    [
        ([1, 2], [(0, 0)], 1, "at least 1"),
        ([1, 2], [(1, -4)], 4, "at least 1"),
        ([1, 2], [(-1, 4)], 4, "in order"),
        ([1, 2], [(3, 4)], 4, "the prompt, which has 2"),
        ([1, 2], [(1, 4), (1, 4)], 8, "at least one token between"),
        ([1, 2], [(2, 4), (1, 4)], 8, "in order"),
        ([1, 2], [(1, 4)], 5, "max_tokens is 5"),
        ([], [(0, 4)], 4, "nothing but holes"),
    ],
)
@pytest.mark.parametrize("unmask", ["threshold", "dream"])
def test_holes_that_cannot_be(engine, submission, prompt, holes, max_tokens, message, unmask):
    asked = submission(prompt=prompt, holes=holes, gen_length=max_tokens, unmask=unmask)
    with pytest.raises(InvalidRequest, match=message) as caught:
        engine.new_request(asked)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(("length", "fits"), [(24, True), (25, False), (10**15, False)])
def test_the_context_holds_prompt_and_holes(engine, submission, length, fits):
    asked = submission(prompt=[1] * 1000, holes=[(3, length)], gen_length=length, steps=1, block_length=32)
    if fits:
        assert engine.new_request(asked).canvas_end == 1024
    else:
        with pytest.raises(ContextLengthExceeded, match="1000 in the prompt") as caught:
            engine.new_request(asked)
        assert caught.value.param == "prompt"


def test_steps_are_at_least_as_many_as_blocks_with_masks(engine, submission):
    row = {"prompt": [1] * 50, "holes": [(0, 1), (40, 1)], "gen_length": 2, "block_length": 8}
    assert engine.new_request(submission(steps=2, **row)).num_blocks == 2
    with pytest.raises(InvalidRequest, match="2 blocks") as caught:
        engine.new_request(submission(steps=1, **row))
    assert caught.value.param == "diffusion.steps"


def test_a_block_causal_model_says_why_not():
    spec = ModelSpec(
        family="sdar",
        vocab_size=300,
        mask_id=MASK,
        eos_ids=frozenset(),
        max_model_len=200,
        attention="block_causal",
        block_length=4,
    )
    asked = Submission(
        request_id="r",
        prompt_ids=[1, 2],
        sampling=SamplingParams(max_tokens=4),
        diffusion=DiffusionParams(block_length=4, cache="block"),
        holes=(Hole(1, 4),),
    )
    with pytest.raises(InvalidRequest, match="block-causal") as caught:
        check(asked, spec)
    assert caught.value.param == "prompt"
    check(replace(asked, holes=()), spec)
