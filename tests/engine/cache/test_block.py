"""Block-causal caches: which rows a step computes, what each sees, and where its keys and values go."""

from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.cache.policies import CACHES
from engine.core.requests.block import Block
from engine.core.requests.request import Request
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


CAUSAL = replace(SPEC, commit="causal", says_next=True, has_draft_adapter=True)


def test_where_commits_are_causal_blocks_begin_behind_the_prompt_whose_last_row_says_their_first_token():
    request = asked(prompt=6, max_tokens=7, spec=CAUSAL)
    assert (request.block.start, request.block.end, request.canvas_end) == (6, 10, 14)
    assert plan(request) == (list(range(6)), list(range(1, 7)), [6])
    assert CACHES["block"].plan(request).sources.tolist() == [5]
    request.masked[6] = False
    assert plan(request) == (list(range(10)), [*range(1, 7), *[10] * 4], [7, 8, 9]), "if it lost its pages"
    request.committed = 6
    assert plan(request) == ([6, 7, 8, 9], [10] * 4, [7, 8, 9])
    assert CACHES["block"].plan(request).sources.tolist() == [7, 8, 9]


def test_a_first_token_that_is_left_to_diffusion_takes_no_forward_of_its_own():
    request = asked(prompt=6, spec=CAUSAL, causal_first=False)
    assert plan(request) == (list(range(10)), [*range(1, 7), *[10] * 4], [6, 7, 8, 9])
    shifted = asked(prompt=8, spec=SHIFTED, causal_first=False)
    assert plan(shifted)[2] == [8], "shifted logits have no other place"


def test_a_block_of_one_position_is_autoregressive():
    request = asked(prompt=6, spec=CAUSAL, block_length=1)
    assert plan(request) == (list(range(6)), list(range(1, 7)), [6])
    request.committed = 6
    request.masked[6] = False
    request.block = Block(1, 7, 8, num_masked=1, fresh=7, visible_end=8)
    assert plan(request) == ([6], [7], [7])


def test_prompts_whose_rows_are_causal_are_cut_anywhere():
    request = asked(prompt=21, spec=CAUSAL)
    whole = CACHES["block"].plan(request)
    for most in (1, 5, 20):
        part = CACHES["block"].cut(whole, most)
        assert (part.rows.tolist(), part.horizons.tolist()) == (list(range(most)), list(range(1, most + 1)))
        assert not len(part.targets)
    assert CACHES["block"].cut(whole, 21) is None, "that is all of it"


def drafted(committed=7):
    """The block [8, 12) of a draft, behind a last token that is not committed."""
    request = opened(asked(prompt=7, spec=CAUSAL, unmask="linear_spec"), start=8)
    request.block.is_drafted, request.committed = True, committed
    return request


def test_a_draft_is_made_and_verified_by_the_same_rows():
    request = drafted()
    assert not request.verifies
    assert plan(request) == ([7, 8, 9, 10], [11] * 4, [8, 9, 10]), "all see each other, the last token with them"
    draft = CACHES["block"].plan(request)
    assert draft.is_draft
    assert (draft.sources.tolist(), draft.adapted.tolist()) == ([8, 9, 10], [True] * 4)
    assert CACHES["block"].cut(draft, 3) is None
    request.masked[8:11] = False
    assert request.verifies
    assert plan(request) == ([7, 8, 9, 10], [8, 9, 10, 11], [8, 9, 10, 11])
    verification = CACHES["block"].plan(request)
    assert not verification.is_draft
    assert (verification.sources.tolist(), verification.adapted.tolist()) == ([7, 8, 9, 10], [False] * 4)
    assert CACHES["block"].cut(verification, 3) is None


def test_rows_of_the_context_go_through_no_adapter():
    request = drafted(committed=3)
    draft = CACHES["block"].plan(request)
    assert draft.rows.tolist() == list(range(3, 11))
    assert draft.horizons.tolist() == [4, 5, 6, 7, *[11] * 4]
    assert draft.adapted.tolist() == [False] * 4 + [True] * 4
    request.slots = PagePool(24, 4).slots(tuple(range(24)), 96)
    other = drafted()
    other.slots, other.diffusion = request.slots, replace(other.diffusion, draft_adapter=False)
    both = lay_out([draft, CACHES["block"].plan(other)], 4, DUMP)
    assert both.adapted.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert lay_out([CACHES["block"].plan(other)], 4, DUMP).adapted is None
    part = CACHES["block"].cut(draft, 7)
    assert part.rows.tolist() == [3, 4, 5, 6], "rows of the draft come together"
