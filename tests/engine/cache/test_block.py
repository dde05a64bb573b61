"""Block-causal caches: which rows a step computes, what each sees, and where its keys and values go."""

from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.cache.policies import CACHES
from engine.core.request import Block, Request
from engine.execution.batch import lay_out
from engine.scheduling.pages import PagePool

SPEC = ModelSpec(
    family="toy",
    vocab_size=50,
    mask_id=49,
    eos_ids=frozenset(),
    max_model_len=96,
    attention="block_causal",
    block_length=4,
)
SHIFTED = replace(SPEC, shift=1)
DUMP = 999


def asked(prompt, max_tokens=16, spec=SPEC, **diffusion):
    submission = Submission(
        request_id="r",
        prompt_ids=[1] * prompt,
        sampling=SamplingParams(max_tokens=max_tokens),
        diffusion=DiffusionParams(**diffusion),
    )
    return Request.new(submission, spec)


def opened(request, start, known=()):
    """The request with everything before `start` decoded and computed, and the block there open."""
    request.masked[:start] = False
    request.masked[[*known]] = False
    request.committed, end = start, start + request.block_length
    request.block = Block(1, start, end, num_masked=4, fresh=start, visible_end=end)
    return request


def plan(request):
    made = CACHES[request.diffusion.cache].plan(request)
    return made.rows.tolist(), made.horizons.tolist(), made.targets.tolist()


def test_blocks_lie_on_a_grid_from_the_first_prompt_token_on():
    request = asked(prompt=6, max_tokens=7)
    assert (request.block.start, request.block.end, request.canvas_end) == (4, 8, 16)
    assert request.targets.tolist() == [6, 7]
    assert request.num_blocks == 3
    assert asked(prompt=90, max_tokens=5).canvas_end == 96
    assert asked(prompt=90, max_tokens=5, block_length=64).canvas_end == 96, "the context ends before the block"


def test_the_prompt_and_the_first_block_are_one_forward():
    assert plan(asked(prompt=9)) == (list(range(12)), [4] * 4 + [8] * 4 + [12] * 4, [9, 10, 11])


def test_a_finished_block_is_computed_again_with_the_first_step_of_the_next():
    request = opened(asked(prompt=4), start=8)
    assert plan(request) == ([8, 9, 10, 11], [12] * 4, [8, 9, 10, 11])
    request.committed = 4
    assert plan(request) == (list(range(4, 12)), [8] * 4 + [12] * 4, [8, 9, 10, 11])


@pytest.mark.parametrize("cache", ["block", "sub_block"])
def test_where_logits_are_shifted_the_first_token_comes_from_the_forward_that_finishes_the_block_before(cache):
    request = opened(asked(prompt=4, spec=SHIFTED, cache=cache), start=8)
    request.committed = 4
    assert plan(request) == ([4, 5, 6, 7], [8] * 4, [8])
    request.committed, request.masked[8] = 8, False
    assert plan(request) == ([8, 9, 10, 11], [12] * 4, [9, 10, 11])


def test_the_row_before_a_block_whose_pages_are_all_shared_writes_to_the_dump():
    request = opened(asked(prompt=8, spec=SHIFTED), start=8)
    assert plan(request) == ([7], [8], [8])
    request.slots = PagePool(24, 4).slots(tuple(range(24)), 96)
    flat = lay_out([CACHES["block"].plan(request)], 4, DUMP)
    assert flat.write_slots.tolist() == [DUMP]
    request.committed = 6
    flat = lay_out([CACHES["block"].plan(request)], 4, DUMP)
    assert (flat.positions.tolist(), flat.write_slots.tolist()) == ([6, 7], [6, 7])


def test_long_prompts_are_cut_into_whole_blocks_without_targets():
    request = asked(prompt=21)
    whole = CACHES["block"].plan(request)
    for most, rows in ((4, 4), (5, 4), (11, 8), (20, 20), (23, 20)):
        part = CACHES["block"].cut(whole, most)
        assert part.rows.tolist() == list(range(rows))
        assert part.horizons.tolist() == [row // 4 * 4 + 4 for row in range(rows)]
        assert not len(part.targets)
        assert part.num_open == 0
    assert CACHES["block"].cut(whole, 3) is None
    request.committed = 20
    assert CACHES["block"].cut(CACHES["block"].plan(request), 3) is None, "the open block is indivisible"


def test_a_part_begins_where_shared_pages_end_in_the_middle_of_a_block():
    request = asked(prompt=21, block_length=8)
    request.committed = 5
    part = CACHES["block"].cut(CACHES["block"].plan(request), 4)
    assert (part.rows.tolist(), part.horizons.tolist()) == ([5, 6, 7], [8] * 3)


def test_targets_are_those_of_the_first_sub_block_with_masks():
    request = opened(asked(prompt=8, block_length=8, sub_block_length=2), start=16, known=(16, 17, 18))
    assert plan(request) == (list(range(16, 24)), [24] * 8, [19])
    request.masked[19] = False
    assert plan(request)[2] == [20, 21]


def test_a_sub_block_is_computed_alone_once_its_first_token_is_known():
    request = opened(asked(prompt=8, block_length=8, sub_block_length=4, cache="sub_block"), start=16, known=(16,))
    whole = list(range(16, 24))
    assert plan(request) == (whole, [24] * 8, [17, 18, 19]), "nothing of the block has been computed yet"
    request.block.is_computed = True
    assert plan(request) == ([16, 17, 18, 19], [24] * 4, [17, 18, 19])
    request.masked[16:20] = False
    assert plan(request) == (whole, [24] * 8, [20, 21, 22, 23]), "its first token is masked"
    request.masked[20] = False
    assert plan(request) == ([20, 21, 22, 23], [24] * 4, [21, 22, 23])


@pytest.mark.parametrize(("attention", "fitting"), [("block_causal", {"block", "sub_block"}), ("full", None)])
def test_caches_fit_one_kind_of_attention(attention, fitting):
    fits = {name for name, policy in CACHES.items() if policy.fits(replace(SPEC, attention=attention))}
    assert fits == (fitting or {*CACHES} - {"block", "sub_block"})


def test_a_row_never_sees_masks_behind_its_own_block():
    request = asked(prompt=30, max_tokens=40)
    rows, horizons, _ = plan(request)
    assert all(row < horizon <= row + 4 for row, horizon in zip(rows, horizons, strict=True))
    assert np.max(horizons) == request.block.end == request.block.visible_end
