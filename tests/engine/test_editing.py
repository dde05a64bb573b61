"""Token editing: LLaDA2.1's rows through the engine, and what is told of an answer whose tokens were replaced."""

from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, FinishReason, InvalidRequest, SamplingParams, Submission
from engine.core.config import ModelSpec
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores
from engine.execution.warmup import any_text
from engine.scheduling.checks.submission import check
from engine.unmask.policies import UNMASKS
from tests.engine.faulty import outputs
from tests.golden import llada2 as golden
from tests.golden.rows import differences, read_rows
from tests.golden.through_engine import alone, engine_of, together

SPEC = ModelSpec(
    family="toy",
    vocab_size=50,
    mask_id=49,
    eos_ids=frozenset({48}),
    max_model_len=64,
    attention="block_causal",
    block_length=4,
    strict_threshold=True,
)
CRAMPED = {"max_model_len": 192, "kv_cache_tokens": 192, "page_size": 8}


@pytest.fixture
def rows(llada2_tiny):
    return read_rows(llada2_tiny / "generations_edit.json")


@pytest.fixture
def engine(llada2_tiny):
    return engine_of(llada2_tiny)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 23),
        ({"prefix_caching": False, "page_size": 5}, 18),
        pytest.param(CRAMPED, 10**9, marks=pytest.mark.slow),
    ],
)
def test_golden_rows_in_one_batch(llada2_tiny, rows, settings, most):
    """Those of few forwards; in slow tests all."""
    rows = [row for row in rows if row["nfe"] <= most]
    engine = engine_of(llada2_tiny, **settings)
    made = together(engine, [golden.asked(row, str(number)) for number, row in enumerate(rows)])
    wanted = [golden.expected(row, engine.info.spec) for row in rows]
    if "kv_cache_tokens" in settings:
        assert engine.stats().preemptions
        wanted = [{"output": row["output"]} for row in wanted]  # a request that resumes may take a forward more
    assert differences(wanted, made) == []
    assert engine.stats().kv_pages_used == 0
    assert engine.stats().decoding.tokens_edited > len(rows)


@pytest.mark.slow
def test_golden_rows_alone(engine, rows):
    some = [row for row in rows if not {257, 258} & {*row["output"]} and 9 <= row["nfe"] <= 32]
    for row in some[::4]:
        before = engine.stats().decoding
        [made] = alone(engine, [golden.asked(row, "row")])
        assert differences([golden.expected(row, engine.info.spec)], [made]) == []
        after, length = engine.stats().decoding, row["block_length"]
        assert after.tokens_edited - before.tokens_edited == row["edits"]
        canvas = -(-(len(row["prompt"]) + row["gen_length"]) // length) * length
        assert after.tokens_decoded - before.tokens_decoded == canvas - len(row["prompt"])


def asked(name="r", prompt=(1, 2, 3, 4, 5), max_tokens=24, diffusion=None, **sampling):
    edit = {"unmask": "edit", "block_length": 16, "threshold": 0.3, "editing_threshold": 0.1, **(diffusion or {})}
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        diffusion=DiffusionParams(**edit),
    )


CROWD = [
    asked("drawn", temperature=0.9, seed=3),
    asked("penalties", presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.3, max_tokens=11),
    asked("stops", stop_ids=frozenset(range(0, 250, 5))),
    asked("biased", logit_bias=((7, 4.0),), bad_words=((9,),), min_tokens=8, logprobs=2, max_tokens=11),
    asked("never replaces", diffusion={"editing_threshold": 1.0}, max_tokens=11),
    asked("no steps behind", diffusion={"max_post_steps": 0, "num_to_transfer": 3}),
]


@pytest.mark.slow
def test_a_request_gets_in_company_what_it_gets_alone(llada2_tiny):
    engine = engine_of(llada2_tiny)
    whole = outputs(engine, *CROWD)
    for one in CROWD:
        [(_, own)] = outputs(engine, one).items()
        assert [(each.token_ids, each.finish_reason, each.logprobs) for each in own] == [
            (each.token_ids, each.finish_reason, each.logprobs) for each in whole[one.request_id]
        ], one.request_id


def test_all_that_is_told_is_of_the_token_that_stands_in_the_end(llada2_tiny):
    engine = engine_of(llada2_tiny)
    one = replace(asked(logprobs=1), is_traced=True, tells_steps=True)
    engine.submit(engine.new_request(one))
    told, steps = [], []
    while engine.request_ids:
        told += engine.step()
        steps += engine.take_traced()
    canvas, decoded_at = {}, {}
    for step in steps:
        for position, token in zip(step.positions, step.token_ids, strict=True):
            canvas[position], decoded_at[position] = token, step.step
    edited = sum(len(step.positions) for step in steps) - len(canvas)
    assert edited > 5
    assert edited == engine.stats().decoding.tokens_edited
    answer = [token for output in told for token in output.token_ids]
    positions = range(5, 5 + len(answer))
    assert answer == [canvas[position] for position in positions]
    assert [step for output in told for step in output.steps] == [decoded_at[position] for position in positions]
    logprobs = [each for output in told for each in output.logprobs]
    confidence = {p: c for step in steps for p, c in zip(step.positions, step.confidences, strict=True)}
    assert [np.exp(each.logprob) for each in logprobs] == pytest.approx([confidence[p] for p in positions], rel=1e-4)
    ends = [step.block[1] for step in steps]
    assert ends == sorted(ends), "no step behind the end of a block, when it has been handed out, changes it"
    assert all(step.block[0] <= min(step.positions, default=step.block[0]) for step in steps)


@pytest.mark.parametrize("most", [0, 2])
def test_a_block_ends_even_if_every_step_would_change_it(llada2_tiny, most):
    """Drawn at temperature 2 with a threshold of 0, no two steps agree."""
    settings = {"threshold": 1.0, "editing_threshold": 0.0, "max_post_steps": most, "block_length": 8}
    one = asked(prompt=list(range(16)), max_tokens=16, temperature=2.0, diffusion=settings)
    [[*_, last]] = outputs(engine_of(llada2_tiny), one).values()
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage.forwards == 2 * (8 + most)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_to_transfer": 65_536, "max_post_steps": 256, "threshold": 0.0, "editing_threshold": 0.0},
        {"threshold": 1.0, "editing_threshold": 1.0, "block_length": 1},
    ],
)
def test_parameters_at_their_bounds(llada2_tiny, settings):
    one = asked(max_tokens=3, diffusion={"block_length": 8, **settings})
    [[*_, last]] = outputs(engine_of(llada2_tiny), one).values()
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage.completion_tokens == 3
    assert last.usage.forwards <= 8 + 256


def test_a_block_that_has_settled_takes_one_more_step(llada2_tiny):
    """Without a token to replace; it is what finds that out."""
    settings = {"threshold": 1.0, "editing_threshold": 1.0}
    one = asked(prompt=list(range(16)), max_tokens=32, diffusion=settings)
    [[*_, last]] = outputs(engine_of(llada2_tiny), one).values()
    assert last.usage.forwards == 2 * (16 + 1)


def request(masked, tokens, **diffusion):
    """The second block of a canvas behind five tokens of prompt: one of them, and three positions to fill."""
    submission = Submission(
        request_id="r",
        prompt_ids=[1, 2, 3, 4, 5],
        sampling=SamplingParams(max_tokens=3),
        diffusion=DiffusionParams(unmask="edit", **diffusion),
    )
    made = Request.new(submission, SPEC)
    made.block.replaces_tokens = True
    made.masked[5:8], made.ids[5:8] = masked, tokens
    return made


def chosen(made, tokens, confidence):
    log_odds = np.log(confidence) - np.log1p(-np.asarray(confidence))
    scores = Scores(made.targets, np.array(tokens), log_odds)
    return UNMASKS["edit"].select(made, scores).tolist()


def test_what_is_filled_and_what_is_replaced():
    made = request([True, False, False], [49, 20, 21], threshold=0.5, editing_threshold=0.4)
    assert made.targets.tolist() == [5, 6, 7], "nothing of the prompt"
    assert chosen(made, [10, 20, 30], [0.6, 0.9, 0.3]) == [True, False, False], "the same, or not sure enough"
    assert chosen(made, [10, 25, 30], [0.1, 0.41, 0.39]) == [True, True, False]
    many = request([True, True, True], [49, 49, 49], threshold=0.5, num_to_transfer=2)
    assert chosen(many, [1, 2, 3], [0.1, 0.9, 0.2]) == [False, True, True], "the most confident, if too few are sure"
    assert chosen(many, [1, 2, 3], [0.1, 0.9, 0.6]) == [False, True, True]
    full = request([False] * 3, [1, 2, 3], editing_threshold=0.5)
    assert chosen(full, [1, 2, 3], [0.9, 0.9, 0.9]) == [False] * 3


@pytest.mark.parametrize(
    ("spec", "sampling", "diffusion", "param"),
    [
        ({"attention": "full", "block_length": None}, {}, {}, "diffusion.unmask"),
        ({"shift": 1}, {}, {}, "diffusion.unmask"),
        ({}, {}, {"cache": "sub_block"}, "diffusion.cache"),
        ({}, {}, {"sub_block_length": 2}, "diffusion.sub_block_length"),
        ({}, {"bad_words": ((1, 2),)}, {}, "bad_words"),
        ({}, {"constraint": any_text(SPEC)}, {}, "diffusion.unmask"),
        ({}, {}, {"editing_threshold": 1.1}, "diffusion.editing_threshold"),
        ({}, {}, {"max_post_steps": -1}, "diffusion.max_post_steps"),
        ({}, {}, {"num_to_transfer": 0}, "diffusion.num_to_transfer"),
    ],
)
def test_what_it_cannot_be_combined_with(spec, sampling, diffusion, param):
    def submission(**own):
        return Submission(
            request_id="r",
            prompt_ids=[1],
            sampling=SamplingParams(max_tokens=4, **sampling),
            diffusion=DiffusionParams(unmask="edit", **own),
        )

    with pytest.raises(InvalidRequest) as refused:
        check(submission(**diffusion), replace(SPEC, **spec))
    assert refused.value.param == param
    check(replace(submission(), sampling=SamplingParams(max_tokens=4)), SPEC)
