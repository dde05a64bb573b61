"""What the page is told of the model: what it refuses, by the engine's own checks, and what a bundled one is."""

from contextlib import nullcontext

import pytest

from engine import (
    BUNDLED,
    CACHES,
    DEMO_MODEL,
    UNMASKS,
    DiffusionParams,
    EngineConfig,
    InvalidRequest,
    SamplingParams,
    Submission,
    load,
    resolved,
)
from server.page.about import about, unfit


@pytest.fixture(scope="module", params=["llada_tiny", "sdar_tiny", "diffusion_gemma_tiny"])
def loaded(request):
    """An engine of a model that attends in both directions, of a block-causal one, and of one without a mask."""
    return load(EngineConfig(model=str(request.getfixturevalue(request.param)), max_model_len=128))


@pytest.mark.parametrize(
    ("name", "value"),
    [("cache", cache) for cache in CACHES]
    + [("unmask", unmask) for unmask in UNMASKS]
    + [("sub_block_length", value) for value in (1, 2)],
)
def test_what_is_unfit_is_refused_and_nothing_else(loaded, name, value):
    spec = loaded.info.spec
    unmask = "threshold" if spec.mask_id is not None else "renoise"
    diffusion = resolved(DiffusionParams(**{"unmask": unmask, name: value}), spec)
    sampling = SamplingParams(max_tokens=4, temperature=0.0)
    submission = Submission(request_id="a", prompt_ids=[1, 2], sampling=sampling, diffusion=diffusion)
    told = unfit(loaded.info)
    is_unfit = name in told and (told[name] is None or value in told[name])
    with pytest.raises(InvalidRequest) if is_unfit else nullcontext():
        loaded.new_request(submission)


def test_only_a_bundled_model_has_examples(loaded):
    told = about(loaded.info)
    assert told.keys() == {"parameters", "end_token_ids"}
    assert about(load(EngineConfig(model=DEMO_MODEL)).info).keys() > {"summary", "limits", "examples"}


def test_examples_are_those_that_the_model_can_answer():
    """One that is block-causal refuses a gap."""
    names = {
        model: {example["name"] for example in about(load(EngineConfig(model=folder)).info)["examples"]}
        for model, folder in BUNDLED.items()
    }
    assert names["demo"] - names["demo-block"] == {"A gap to fill"}
