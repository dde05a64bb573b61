"""What a submission must satisfy beside the model: a cache that fits its family."""

from dataclasses import replace

import pytest

from engine import DiffusionParams, InvalidRequest, ModelSpec, SamplingParams, Submission
from engine.cache.policies import CACHES
from engine.core.plan import CachePolicy
from engine.scheduling.checks import check

FULL = ModelSpec(family="llada", vocab_size=300, mask_id=256, eos_ids=frozenset(), max_model_len=200)
BLOCK_CAUSAL = replace(FULL, family="sdar", attention="block_causal", block_length=4)


class BlockCausal(CachePolicy):
    def fits(self, spec):
        return spec.attention == "block_causal"


def asked(cache):
    return Submission(
        request_id="r",
        prompt_ids=[1, 2],
        sampling=SamplingParams(max_tokens=4),
        diffusion=DiffusionParams(cache=cache, block_length=4),
    )


@pytest.mark.parametrize("cache", sorted(CACHES))
def test_caches_whose_rows_see_the_whole_canvas_are_for_models_that_attend_in_both_directions(cache, monkeypatch):
    check(asked(cache), FULL)
    with pytest.raises(InvalidRequest, match=r"block-causal \(sdar\).* none that this engine has") as caught:
        check(asked(cache), BLOCK_CAUSAL)
    assert caught.value.param == "diffusion.cache"
    monkeypatch.setitem(CACHES, "block", BlockCausal())
    with pytest.raises(InvalidRequest, match=r"is 'block', .*in both directions \(llada\).* none, prefix, dual"):
        check(asked("block"), FULL)
    with pytest.raises(InvalidRequest, match=rf"is '{cache}', .*Caches that fit it: block\."):
        check(asked(cache), BLOCK_CAUSAL)
    check(asked("block"), BLOCK_CAUSAL)
