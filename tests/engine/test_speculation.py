"""Self-speculation: drafts cost no token, are told by nobody, and are counted only as far as they stand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import DiffusionParams, FinishReason, InvalidRequest, SamplingParams, Submission
from engine.core.config import ModelSpec
from engine.execution.warmup import any_text
from engine.scheduling.checks.submission import check
from engine.unmask.policies import effective
from tests.engine.faulty import outputs
from tests.golden.rows import read_rows
from tests.golden.through_engine import engine_of

SPEC = ModelSpec(
    family="toy",
    vocab_size=50,
    mask_id=49,
    eos_ids=frozenset({48}),
    max_model_len=64,
    attention="block_causal",
    commit="causal",
    says_next=True,
    block_length=4,
)


@pytest.fixture
def engine(nemotron_spec_tiny):
    return engine_of(nemotron_spec_tiny)


@pytest.fixture(scope="module")
def prompt(nemotron_spec_tiny):
    """One whose drafts are accepted in part."""
    row = next(row for row in read_rows(nemotron_spec_tiny / "generations.json") if row["mode"] == "linear_spec")
    assert {2, 4} <= {*row["accepted"]}
    return row["prompt"]


def asked(prompt, name="r", max_tokens=40, diffusion=None, **sampling):
    given = {"unmask": "linear_spec", "block_length": 8, **(diffusion or {})}
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **sampling}),
        diffusion=DiffusionParams(**given),
    )


def tokens(told):
    return [token for output in told for token in output.token_ids]


def autoregressive(one):
    return replace(one, diffusion=DiffusionParams(block_length=1))


@pytest.mark.parametrize(
    ("length", "max_tokens"), [(1, 7), (2, 2), (2, 40), (8, 1), (8, 2), (8, 7), (8, 40), (64, 1), (64, 40)]
)
def test_the_text_is_the_autoregressive_one_in_fewer_forwards(engine, prompt, length, max_tokens):
    one = asked(prompt, max_tokens=max_tokens, diffusion={"block_length": length})
    [told] = outputs(engine, one).values()
    [right] = outputs(engine, autoregressive(one)).values()
    assert tokens(told) == tokens(right)
    assert told[-1].finish_reason is FinishReason.LENGTH
    assert told[-1].usage.completion_tokens == max_tokens
    assert right[-1].usage.forwards == max_tokens
    if (length, max_tokens) == (8, 40):
        assert told[-1].usage.forwards < 30
    assert engine.stats().kv_pages_used == 0


def test_the_context_ends_before_the_last_block(nemotron_spec_tiny, prompt):
    engine = engine_of(nemotron_spec_tiny, max_model_len=len(prompt) + 21, page_size=4)
    one = asked(prompt, max_tokens=21)
    assert tokens(*outputs(engine, one).values()) == tokens(*outputs(engine, autoregressive(one)).values())


def test_all_that_is_told_is_of_tokens_that_stand(engine, prompt):
    one = replace(asked(prompt, logprobs=1), is_traced=True, tells_steps=True)
    engine.submit(engine.new_request(one))
    told, steps = [], []
    while engine.request_ids:
        told += engine.step()
        steps += engine.take_traced()
    traced = [position for step in steps for position in step.positions]
    assert traced == list(range(len(prompt), len(prompt) + len(traced))), "each position once, in order"
    assert [token for step in steps for token in step.token_ids][:40] == tokens(told)
    decoded_at = [step.step for step in steps for _ in step.positions]
    assert [step for output in told for step in output.steps] == decoded_at[:40]
    [right] = outputs(engine, autoregressive(one)).values()
    for ours, theirs in zip(
        *([each.logprob for output in some for each in output.logprobs] for some in (told, right)), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_what_is_counted(engine, prompt):
    [told] = outputs(engine, asked(prompt)).values()
    stats = engine.stats().decoding
    assert stats.tokens_edited == 0
    assert stats.tokens_decoded - stats.tokens_discarded["over_length"] == 40
    assert stats.confidence.count == stats.tokens_decoded
    assert stats.blocks == len(told)
    assert stats.block_positions == stats.tokens_decoded
    assert stats.denoising_steps == told[-1].usage.forwards


def test_an_end_ends_the_answer_wherever_in_a_round_it_is(engine, prompt):
    whole = tokens(*outputs(engine, asked(prompt)).values())
    for place in (0, 1, 5, 8):
        end = whole[place]
        if end in whole[:place]:
            continue
        [told] = outputs(engine, asked(prompt, stop_ids=frozenset({end}))).values()
        assert (tokens(told), told[-1].finish_reason) == (whole[:place], FinishReason.STOP)


def test_an_end_in_a_draft_ends_nothing(nemotron_tiny, run):
    """Drafts of random weights are wrong: tokens that only they hold do not end an answer."""
    engine, one = engine_of(nemotron_tiny), asked(list(range(20, 40)), max_tokens=24)
    [(answer, *_)] = run(engine, one).values()
    everything = frozenset(range(256)) - {*answer}
    assert run(engine, replace(one, sampling=replace(one.sampling, stop_ids=everything)))["r"][0] == answer


@pytest.mark.slow
def test_a_request_gets_in_company_and_when_it_is_preempted_what_it_gets_alone(nemotron_spec_tiny, prompt):
    crowd = [
        asked(
            prompt[: 5 + number],
            str(number),
            max_tokens=30,
            temperature=0.9 * (number // 2 % 2),
            seed=number,
            diffusion={
                "draft_adapter": number % 2 == 0,
                "draft_threshold": 0.2 * number,
                "block_length": 4 + 2 * number,
            },
        )
        for number in range(5)
    ]
    crowd.append(replace(asked(prompt, "ar", max_tokens=30), diffusion=DiffusionParams(threshold=0.6)))
    by_itself = engine_of(nemotron_spec_tiny)
    alone = {one.request_id: tokens(*outputs(by_itself, one).values()) for one in crowd}
    engine = engine_of(nemotron_spec_tiny, max_model_len=64, kv_cache_tokens=64, page_size=8)
    engine.runner.pool.keys.fill_(torch.nan)
    engine.runner.pool.values.fill_(torch.nan)
    assert {name: tokens(told) for name, told in outputs(engine, *crowd).items()} == alone
    assert engine.stats().preemptions


@pytest.mark.slow
def test_what_is_drawn_is_drawn_from_the_autoregressive_distribution(nemotron_tiny, run):
    """The second of two tokens, of which a draft is offered: as often as the model says."""
    engine, count = engine_of(nemotron_tiny, max_running_requests=250, max_batch_rows=4096), 1500
    prompt = [5, 9, 17, 33]
    some = {"temperature": 1.0, "top_k": 3}

    def second(name, diffusion):
        many = [
            asked(prompt, f"{name}{seed}", max_tokens=2, seed=seed, diffusion=diffusion, **some)
            for seed in range(count)
        ]
        answers = [
            answer for start in range(0, count, 250) for answer, *_ in run(engine, *many[start : start + 250]).values()
        ]
        return np.bincount([256 * first + token for first, token in answers], minlength=65_536) / count

    drafted = second("d", {"block_length": 4})
    plain = second("a", {"unmask": "threshold", "block_length": 1})
    assert np.count_nonzero(plain) >= 6
    assert np.abs(drafted - plain).sum() / 2 < 0.06, "total variation of 9 outcomes, 1,500 draws each"


@pytest.mark.parametrize(
    ("spec", "sampling", "diffusion", "param"),
    [
        ({"attention": "full", "block_length": None, "says_next": False}, {}, {}, "diffusion.unmask"),
        ({"says_next": False}, {}, {}, "diffusion.unmask"),
        ({}, {}, {"cache": "sub_block"}, "diffusion.cache"),
        ({}, {}, {"sub_block_length": 2, "block_length": 4}, "diffusion.sub_block_length"),
        ({}, {"constraint": any_text(SPEC), "ignore_eos": False}, {}, "diffusion.unmask"),
        ({}, {"bad_words": ((1, 2),)}, {}, "bad_words"),
        ({}, {"presence_penalty": 0.5}, {}, "presence_penalty"),
        ({}, {"frequency_penalty": 0.5}, {}, "frequency_penalty"),
        ({}, {"repetition_penalty": 1.5}, {}, "repetition_penalty"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused_by_name(spec, sampling, diffusion, param):
    with pytest.raises(InvalidRequest) as refused:
        check(effective(asked([1, 2, 3], max_tokens=8, diffusion=diffusion, **sampling)), replace(SPEC, **spec))
    assert refused.value.param == param


def test_what_it_can_be_combined_with():
    sampling = {"logit_bias": ((3, 1.0),), "bad_words": ((4,),), "min_tokens": 3, "temperature": 0.7, "top_p": 0.9}
    check(effective(asked([1, 2, 3], max_tokens=8, diffusion={"block_length": 4}, **sampling)), SPEC)
