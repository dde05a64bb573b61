"""Readings: requests whose masks are all decoded in one forward, for what the model says of named tokens there."""

import numpy as np
import pytest
import torch

from engine import DiffusionParams, EngineConfig, Hole, InvalidRequest, SamplingParams, Submission, load
from engine.bench.block_causal import BlockCausalContext
from engine.bench.reference import DenseContext

from .faulty import outputs

NAMED = (7, 3, 200, 7)


def read(name, prompt, holes=(), count=1, span=None, **sampling):
    """`count` masks behind the prompt, or in its `holes`, which lie within `span` positions."""
    return Submission(
        request_id=str(name),
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=count, ignore_eos=True, **{"logprobs": 0, "logprob_ids": NAMED, **sampling}),
        diffusion=DiffusionParams(unmask="fixed", steps=1, block_length=span),
        holes=tuple(Hole(*hole) for hole in holes),
    )


def plain(engine, request):
    """[fresh masks, vocab] log-probabilities by a plain forward over the whole canvas."""
    model, spec, ids = engine.runner.model, engine.info.spec, torch.from_numpy(request.ids)
    block = request.block_length
    with torch.inference_mode():
        causal = spec.is_block_causal
        context = BlockCausalContext(model, len(ids), block) if causal else DenseContext(model, len(ids))
        logits = model.logits(model(ids, torch.arange(len(ids)), context))
    sources = np.maximum(request.answer_positions - spec.shift, 0)
    return logits[sources].double().log_softmax(-1).numpy()


def among(logprobs):
    """The probability of each, given that it is one of them."""
    return np.exp(logprobs) / np.exp(logprobs).sum()


@pytest.fixture(params=["llada-tiny", "dream-tiny", "sdar-tiny", "fast-dllm-v2-tiny"])
def family(request, llada_tiny):
    return load(EngineConfig(model=str(llada_tiny.with_name(request.param)), page_size=8))


def test_what_is_read_is_what_a_plain_forward_says(family):
    """In one forward each; of prompts that begin alike, and end anywhere in a block."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 200, 40).tolist()
    asked = [read(n, shared + rng.integers(0, 200, n).tolist()) for n in range(1, 36)]
    told = outputs(family, *asked)
    for one in asked:
        [output] = told[one.request_id]
        expected = plain(family, family.new_request(one))[0, list(NAMED)]
        assert output.logprobs[0].named == pytest.approx(expected, abs=1e-4)
        assert among(output.logprobs[0].named) == pytest.approx(among(expected), abs=1e-5)
        assert output.usage.forwards <= 2  # one, and one more where another request computes the same page first
    if block := family.info.spec.block_length:
        assert sum(told[one.request_id][0].usage.cached_tokens for one in asked) == 34 * (40 // block * block)


def test_all_holes_of_a_canvas_in_one_forward(engine):
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 200, 30).tolist()
    asked = read("joint", prompt, [(20, 1), (24, 1), (26, 2), (30, 1)], count=5, span=16)
    [output] = outputs(engine, asked)["joint"]
    assert output.usage.forwards == 1
    expected = plain(engine, engine.new_request(asked))[:, list(NAMED)]
    assert [one.named for one in output.logprobs] == [pytest.approx(row, abs=1e-5) for row in expected]


def test_each_request_names_its_own_tokens(engine):
    """Beside requests that name others, none, or ask for no log-probabilities at all."""
    lists = [(5,), (), tuple(range(250)), NAMED]
    asked = [read(n, [5, 6, 7 + n], logprob_ids=ids, logprobs=n) for n, ids in enumerate(lists)]
    quiet = read("quiet", [5, 6, 7], logprobs=None, logprob_ids=())
    together = outputs(engine, *asked, quiet)
    assert together["quiet"][0].logprobs is None
    for number, one in enumerate(asked):
        [told] = together[one.request_id][0].logprobs
        assert told.named == outputs(engine, one)[one.request_id][0].logprobs[0].named
        expected = plain(engine, engine.new_request(one))[0, list(lists[number])]
        assert told.named == pytest.approx(expected, abs=1e-5)
        assert len(told.top) == number


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        ("out of vocabulary", {"logprob_ids": (1, 100_000)}),
        ("at most 512", {"logprob_ids": (1,) * 513}),
        ("only reported with", {"logprobs": None}),
    ],
)
def test_names_that_cannot_be_read(engine, words, sampling):
    with pytest.raises(InvalidRequest, match=words) as error:
        engine.new_request(read("r", [1, 2], **sampling))
    assert error.value.param == "logprob_token_ids"
