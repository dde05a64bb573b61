"""What a submission must satisfy beside the model: a cache that fits its family."""

from dataclasses import replace

import pytest

from engine import DiffusionParams, InvalidRequest, ModelSpec, SamplingParams, Submission
from engine.scheduling.checks.submission import check
from tests.engine.toys import FULL_ATTENTION_CACHES

FULL = ModelSpec(family="llada", vocab_size=300, mask_id=256, eos_ids=frozenset(), max_model_len=200)
BLOCK_CAUSAL = replace(FULL, family="sdar", attention="block_causal", block_length=4)


def asked(cache):
    return Submission(
        request_id="r",
        prompt_ids=[1, 2],
        sampling=SamplingParams(max_tokens=4),
        diffusion=DiffusionParams(cache=cache, block_length=4),
    )


@pytest.mark.parametrize("cache", FULL_ATTENTION_CACHES)
def test_caches_whose_rows_see_the_whole_canvas_are_for_models_that_attend_in_both_directions(cache):
    check(asked(cache), FULL)
    words = rf"is '{cache}', .*block-causal \(sdar\)\. Caches that fit it: block, sub_block\."
    with pytest.raises(InvalidRequest, match=words) as caught:
        check(asked(cache), BLOCK_CAUSAL)
    assert caught.value.param == "diffusion.cache"


@pytest.mark.parametrize("cache", ["block", "sub_block"])
def test_caches_whose_rows_see_nothing_behind_their_block_are_for_block_causal_models(cache):
    check(asked(cache), BLOCK_CAUSAL)
    with pytest.raises(InvalidRequest, match=rf"is '{cache}', .*in both directions \(llada\).* none, prefix, dual"):
        check(asked(cache), FULL)


def test_the_model_chooses_the_cache_where_the_request_does_not():
    for spec in (FULL, BLOCK_CAUSAL):
        check(asked("auto"), spec)


@pytest.mark.parametrize("unmask", ["cad", "dream"])
def test_policies_that_cut_the_canvas_do_not_fit_blocks_of_one_length(unmask):
    one = asked("auto")
    with pytest.raises(InvalidRequest, match=rf"is '{unmask}', .*block-causal \(sdar\).* fixed") as caught:
        check(replace(one, diffusion=replace(one.diffusion, unmask=unmask)), BLOCK_CAUSAL)
    assert caught.value.param == "diffusion.unmask"


@pytest.mark.parametrize(
    ("spec", "sub_block_length", "words"),
    [(FULL, 2, "attends in both directions"), (BLOCK_CAUSAL, 3, "does not divide the block's 4 tokens")],
)
def test_sub_blocks_divide_the_blocks_of_block_causal_models(spec, sub_block_length, words):
    one = asked("auto")
    check(replace(one, diffusion=replace(one.diffusion, sub_block_length=2)), BLOCK_CAUSAL)
    with pytest.raises(InvalidRequest, match=words) as caught:
        check(replace(one, diffusion=replace(one.diffusion, sub_block_length=sub_block_length)), spec)
    assert caught.value.param == "diffusion.sub_block_length"


def test_a_block_is_no_larger_than_a_step():
    check(asked("auto"), BLOCK_CAUSAL, max_batch_rows=4)
    with pytest.raises(InvalidRequest, match="at most 3 positions at once") as caught:
        check(asked("auto"), BLOCK_CAUSAL, max_batch_rows=3)
    assert caught.value.param == "diffusion.block_length"
    check(asked("auto"), replace(BLOCK_CAUSAL, max_model_len=6), max_batch_rows=6)
