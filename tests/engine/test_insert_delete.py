"""Insertion and deletion: LLaDA2.2's rows through the engine, and what is told of an answer whose tokens have moved."""

from dataclasses import replace

import numpy as np
import pytest

from engine import DiffusionParams, Discard, FinishReason, InvalidRequest, SamplingParams, Submission
from engine.core.config import ModelSpec
from engine.core.requests.block import BlockEdits
from engine.core.requests.request import Request
from engine.core.steps.scores import Proposals, Scores
from engine.execution.warmup import any_text
from engine.scheduling.checks.submission import check
from engine.unmask.policies import UNMASKS
from tests.engine.faulty import outputs
from tests.golden import llada2 as golden
from tests.golden.rows import differences, read_rows
from tests.golden.through_engine import alone, engine_of, together

MASK, DELETE, SPLIT = 49, 47, 46
SPEC = ModelSpec(
    family="toy",
    vocab_size=50,
    mask_id=MASK,
    eos_ids=frozenset({48}),
    max_model_len=64,
    attention="block_causal",
    block_length=8,
    strict_threshold=True,
    delete_id=DELETE,
    split_id=SPLIT,
)
CRAMPED = {"max_model_len": 64, "kv_cache_tokens": 64, "page_size": 8}
SMALL_PAGES = {"max_model_len": 128, "page_size": 5, "prefix_caching": False}


@pytest.fixture
def rows(llada22_tiny):
    return read_rows(llada22_tiny / "generations.json")


@pytest.fixture
def engine(llada22_tiny):
    return engine_of(llada22_tiny, max_model_len=128)


@pytest.mark.parametrize(
    ("settings", "stride"),
    [
        ({"max_model_len": 128}, 10),
        (SMALL_PAGES, 8),
        pytest.param({"max_model_len": 128}, 1, marks=pytest.mark.slow),
        pytest.param(CRAMPED, 1, marks=pytest.mark.slow),
    ],
)
def test_golden_rows_in_one_batch(llada22_tiny, rows, settings, stride):
    most = 24 if settings is CRAMPED else 10**9  # forwards, of which everybody takes more where there is no room
    rows = [row for row in rows if canvas_end(row) <= settings["max_model_len"] and row["nfe"] <= most][::stride]
    engine = engine_of(llada22_tiny, **settings)
    made = together(engine, [golden.asked(row, str(number)) for number, row in enumerate(rows)])
    wanted = [golden.expected(row, engine.info.spec) for row in rows]
    if "kv_cache_tokens" in settings:
        assert engine.stats().preemptions
        wanted = [{"output": row["output"]} for row in wanted]  # a request that resumes may take a forward more
    assert differences(wanted, made) == []
    assert engine.stats().kv_pages_used == 0
    assert engine.stats().decoding.tokens_discarded[Discard.DELETED]


def canvas_end(row):
    length = row["block_length"]
    return -(-(len(row["prompt"]) + row["gen_length"]) // length) * length


@pytest.mark.slow
def test_golden_rows_alone(engine, rows):
    for row in rows[::13]:
        before = engine.stats().decoding
        [made] = alone(engine, [golden.asked(row, "row")])
        assert differences([golden.expected(row, engine.info.spec)], [made]) == []
        after = engine.stats().decoding
        decoded = after.tokens_decoded - before.tokens_decoded
        lost = {reason: after.tokens_discarded[reason] - before.tokens_discarded[reason] for reason in Discard}
        assert all(count >= 0 for count in lost.values())
        has_end = not {257, 258}.isdisjoint(row["output"])
        assert decoded == len(made["output"]) + has_end + sum(lost.values())
        assert after.denoising_steps - before.denoising_steps <= row["nfe"]
        if not row["deletes"] + row["splits"]:
            assert not lost[Discard.DELETED]


def asked(name="r", prompt=(195,), max_tokens=8, diffusion=None, **sampling):
    edit = {"threshold": 0.95, "editing_threshold": 0.3, "block_length": 16, **(diffusion or {})}
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        diffusion=DiffusionParams(unmask="insert_delete", **edit),
    )


PROMPT = (170, 118, 85)
EAGER = {"threshold": 0.5, "editing_threshold": 0.0}
CROWD = [
    asked("both", PROMPT, 20, EAGER),
    asked("no steps behind", PROMPT, 20, {**EAGER, "max_post_steps": 0}, logprobs=0),
    asked("penalties", PROMPT, 8, EAGER, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.3),
    asked("biased", PROMPT, 8, EAGER, logit_bias=((261, 4.0), (260, 3.0)), bad_words=((9,),), logprobs=1),
    asked("two blocks at once", PROMPT, 8, {**EAGER, "block_length": 32}),
    replace(asked("another policy", max_tokens=12), diffusion=DiffusionParams(unmask="edit", threshold=0.3)),
]


@pytest.mark.slow
def test_a_request_gets_in_company_what_it_gets_alone(llada22_tiny, engine):
    whole = outputs(engine_of(llada22_tiny, max_model_len=128), *CROWD)
    for one in CROWD:
        [(_, own)] = outputs(engine, one).items()
        assert [(each.token_ids, each.finish_reason, each.logprobs) for each in own] == [
            (each.token_ids, each.finish_reason, each.logprobs) for each in whole[one.request_id]
        ], one.request_id


def test_all_that_is_told_moves_with_its_token(engine):
    """A trace tells a token at each place it comes to; it stays the token of the step that wrote it."""
    one = replace(asked("r", PROMPT, 29, EAGER, logprobs=1), is_traced=True, tells_steps=True)
    engine.submit(engine.new_request(one))
    told, steps = [], []
    while engine.request_ids:
        told += engine.step()
        steps += engine.take_traced()
    canvas, first = {}, {}
    for step in steps:
        for position, token, confidence in zip(step.positions, step.token_ids, step.confidences, strict=True):
            canvas[position] = token, confidence
            first.setdefault((token, confidence), set()).add(step.step)
    answer = [token for output in told for token in output.token_ids]
    positions = range(3, 3 + len(answer))
    assert answer == [canvas[position][0] for position in positions]
    logprobs = [each.logprob for output in told for each in output.logprobs]
    assert np.exp(logprobs) == pytest.approx([canvas[position][1] for position in positions], rel=1e-4)
    written_at = [step for output in told for step in output.steps]
    for step, position in zip(written_at, positions, strict=True):
        assert step in first[canvas[position]]
    moved = sum(len(step.positions) for step in steps) - engine.stats().decoding.tokens_decoded
    assert moved - engine.stats().decoding.tokens_edited > 5
    assert not {256, 260, 261} & {*answer}


@pytest.mark.parametrize(
    ("diffusion", "sampling"),
    [
        ({"max_post_steps": 0}, {}),
        ({"max_post_steps": 9}, {}),
        ({"threshold": 0.0, "editing_threshold": 0.0, "max_post_steps": 0}, {}),
        ({"threshold": 1.0, "editing_threshold": 1.0, "max_post_steps": 1}, {}),
        ({"editing_threshold": 0.0, "max_post_steps": 20}, {"logit_bias": ((260, 100.0),)}),
        pytest.param(
            {"editing_threshold": 0.0, "max_post_steps": 20}, {"logit_bias": ((261, 100.0),)}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"editing_threshold": 0.0, "max_post_steps": 20}, {"logit_bias": ((256, 100.0),)}, marks=pytest.mark.slow
        ),
        ({"editing_threshold": 0.0, "max_post_steps": 20}, {"allowed_ids": frozenset({5, 6, 260, 261})}),
        pytest.param(
            {"editing_threshold": 0.0, "max_post_steps": 20}, {"allowed_ids": frozenset({5})}, marks=pytest.mark.slow
        ),
    ],
)
def test_every_block_ends(engine, diffusion, sampling):
    """At the bounds of parameters, and where every token that is drawn deletes, splits or is the mask."""
    one = asked("r", PROMPT, 13, {**EAGER, **diffusion}, **sampling)
    [[*_, last]] = outputs(engine, one).values()
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage.forwards <= 16 + one.diffusion.max_post_steps + 1
    assert {*last.token_ids} <= {*range(256), 257, 258, 259, 262, 263} & {*sampling.get("allowed_ids", range(264))}


def opened(tokens=(MASK,) * 5, first=(True,) * 5, **diffusion):
    """A block of eight that begins with three tokens of the prompt."""
    made = Request.new(
        Submission(
            request_id="r",
            prompt_ids=[1, 2, 3],
            sampling=SamplingParams(max_tokens=5),
            diffusion=DiffusionParams(unmask="insert_delete", **diffusion),
        ),
        SPEC,
    )
    made.block.replaces_tokens = True
    made.ids[3:] = tokens
    made.masked[3:] = made.ids[3:] == MASK
    odds = np.arange(5.0)
    made.block.edits = BlockEdits(first=np.array(first), log_odds=odds, written=tuple(frozenset({n}) for n in range(5)))
    return made


def step(made, tokens, confidence, tried=None):
    """What a step writes if the model proposes these: MASK beside 7, and 30 in place of any edit."""
    proposed, odds = np.array(tokens), np.log(confidence) - np.log1p(-np.asarray(confidence))
    is_mask = proposed == MASK
    others = [Proposals(np.full(5, 30), np.zeros(5))] + [Proposals(np.full(5, tried), odds)] * (tried is not None)
    margin = np.where(is_mask, -0.2, 0.2)
    return UNMASKS["insert_delete"].rewrite(
        made,
        Scores(made.targets, np.where(is_mask, 7, proposed), odds, margin=margin, without=tuple(others)),
    )


def test_masks_are_filled_by_threshold_or_one_at_least():
    made = opened(threshold=0.5)
    assert step(made, [10, 11, 12, 13, 14], [0.1, 0.6, 0.5, 0.9, 0.2]).chosen.tolist() == [0, 1, 0, 1, 0]
    assert step(made, [10, 11, 12, 13, 14], [0.1, 0.2, 0.5, 0.4, 0.2]).chosen.tolist() == [0, 0, 1, 0, 0]
    found = step(made, [10, MASK, 12, 13, 14], [0.1, 0.6, 0.5, 0.4, 0.2])
    assert found.scores.tokens.tolist() == [MASK, 7, MASK, MASK, MASK], "the best other token of a first mask"
    new = opened(first=(True, False, False, True, True), threshold=0.5)
    assert step(new, [10, 11, 12, 13, 14], [0.1, 0.6, 0.5, 0.9, 0.2]).chosen.tolist() == [0, 1, 1, 1, 0], "one, and two"


def test_places_go_and_come():
    made = opened((20, 21, 22, MASK, 24), (True, True, False, True, True), threshold=0.5, editing_threshold=0.5)
    found = step(made, [20, SPLIT, DELETE, 13, 25], [0.9, 0.9, 0.9, 0.9, 0.6])
    assert found.scores.tokens.tolist() == [20, MASK, 21, 13, 25]
    assert found.masked.tolist() == [0, 1, 0, 0, 0]
    assert found.chosen.tolist() == [0, 0, 0, 1, 1]
    assert found.moved.tolist() == [0, 0, 1, 0, 0]
    assert found.edits.first.tolist() == [True, False, True, True, True]
    assert found.scores.log_odds[[0, 2]].tolist() == [0.0, 1.0], "of the step that wrote them"
    assert [*found.edits.written] == [{0}, {1, SPLIT}, {2, DELETE}, {3, 13}, {4, 25}]
    shorter = step(made, [DELETE, 21, DELETE, 13, 24], [0.9] * 5)
    assert shorter.scores.tokens.tolist() == [21, 13, 24, MASK, MASK]
    longer = step(made, [SPLIT, SPLIT, 22, 13, 24], [0.9] * 5)
    assert longer.scores.tokens.tolist() == [MASK, 20, MASK, 21, 22], "what does not fit is cut off"


def test_the_last_step_writes_no_edit_and_leaves_no_mask():
    made = opened((20, 21, MASK, 23, 24), (True, True, False, True, True), max_post_steps=1, editing_threshold=0.5)
    found = step(made, [DELETE, 21, MASK, SPLIT, 25], [0.9, 0.9, 0.3, 0.9, 0.4])
    assert found.scores.tokens.tolist() == [30, 21, 30, 30, 24]
    assert found.is_settled
    assert not found.masked.any()


def test_a_step_that_writes_nothing_settles_the_block():
    made = opened((20, 21, 22, 23, 24), editing_threshold=0.5)
    assert step(made, [20, 21, 22, 23, 25], [0.9, 0.9, 0.9, 0.9, 0.4]).is_settled
    assert not step(made, [20, 21, 22, 23, 25], [0.9, 0.9, 0.9, 0.9, 0.6]).is_settled


def test_a_block_that_was_there_before_takes_another_token():
    made = opened((20, 21, 22, 23, 24), editing_threshold=0.5)
    first = step(made, [20, 31, 22, 33, 24], [0.9, 0.7, 0.9, 0.6, 0.5])
    assert first.scores.tokens.tolist() == [20, 31, 22, 33, 24]
    assert len(UNMASKS["insert_delete"].needs(made).without) == 1
    made.block.edits = first.edits
    _, (positions, tokens) = UNMASKS["insert_delete"].needs(made).without
    assert [*zip(positions.tolist(), tokens.tolist(), strict=True)] == [
        *[(3, 0), (4, 1), (4, 31), (5, 2), (6, 3), (6, 33), (7, 4)],
    ]
    again = step(made, [20, 31, 22, 33, 24], [0.9, 0.7, 0.9, 0.6, 0.5], tried=40)
    assert again.scores.tokens.tolist() == [20, 31, 22, 40, 24], "the least confident one that changes"


@pytest.mark.parametrize(
    ("spec", "sampling", "diffusion", "param"),
    [
        ({"attention": "full", "block_length": None}, {}, {}, "diffusion.unmask"),
        ({"shift": 1}, {}, {}, "diffusion.unmask"),
        ({"split_id": None}, {}, {}, "diffusion.unmask"),
        ({}, {}, {"cache": "sub_block"}, "diffusion.cache"),
        ({}, {}, {"sub_block_length": 2}, "diffusion.sub_block_length"),
        ({}, {"bad_words": ((1, 2),)}, {}, "bad_words"),
        ({}, {"constraint": any_text(SPEC)}, {}, "diffusion.unmask"),
        ({}, {"temperature": 0.5}, {}, "temperature"),
        ({}, {"top_p": 0.5}, {}, "top_p"),
        ({}, {"top_k": 5}, {}, "top_k"),
        ({}, {"min_p": 0.5}, {}, "min_p"),
        ({}, {"min_tokens": 2}, {}, "min_tokens"),
    ],
)
def test_what_it_cannot_be_combined_with(spec, sampling, diffusion, param):
    def submission(sampling, **own):
        return Submission(
            request_id="r",
            prompt_ids=[1],
            sampling=SamplingParams(max_tokens=4, **sampling),
            diffusion=DiffusionParams(unmask="insert_delete", **own),
        )

    with pytest.raises(InvalidRequest) as refused:
        check(submission(sampling, **diffusion), replace(SPEC, **spec))
    assert refused.value.param == param
    check(submission({}), SPEC)
