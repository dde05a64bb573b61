"""CadLLM: against the published controller, its formulas one by one, and scores over a part of the vocabulary."""

import json

import numpy as np
import pytest
import torch

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.block import Block
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs, Scores
from engine.scoring.top_tokens import top
from engine.unmask.cad import _repetition
from engine.unmask.policies import UNMASKS, effective, needs
from tests.engine.scored import score

VOCAB, MASK = 4000, 3999
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset(), max_model_len=4096)
CAD = UNMASKS["cad"]


@pytest.fixture(scope="session")
def rows(llada_tiny):
    """Six generations of the published controller, in the words of the other golden rows."""
    published = json.loads((llada_tiny / "cadllm.json").read_text())
    renamed = {"min_block": "min_block_length", "max_block": "max_block_length"}
    return [{renamed.get(key, key): value for key, value in row.items()} | {"unmask": "cad"} for row in published]


@pytest.fixture
def vocabularies(engine, monkeypatch):
    """Request id -> the size of the vocabulary at each of its steps, as the engine runs."""
    sizes, commit = {}, engine.scheduler.commit

    def watch(choices):
        plans = [choice.plan for choice in choices]
        for plan, need in zip(plans, needs(plans), strict=True):
            sizes.setdefault(plan.request.id, []).append(need.vocabulary)
        return commit(choices)

    monkeypatch.setattr(engine.scheduler, "commit", watch)
    return sizes


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_golden_row(engine, rows, submission, run, vocabularies, together):
    submissions = [submission(number, cache="dual", ignore_eos=True, **row) for number, row in enumerate(rows)]
    batches = [submissions] if together else [[one] for one in submissions]
    results = {key: result for batch in batches for key, result in run(engine, *batch).items()}
    for number, row in enumerate(rows):
        tokens, _, usage = results[str(number)]
        assert tokens == row["output"], f"row {number}"
        assert usage.forwards == row["nfe"], f"row {number}"
        assert vocabularies[str(number)] == row["vocab_sizes"], f"row {number}"
    assert {row.get("confidence_method") for row in rows} == {None, "entropy"}


def asked(max_tokens=128, **diffusion):
    diffusion = DiffusionParams(unmask="cad", **diffusion)
    sampling = SamplingParams(max_tokens=max_tokens)
    submission = Submission(request_id="r", prompt_ids=[1, 2], sampling=sampling, diffusion=diffusion)
    return Request.new(effective(submission), SPEC)


def opened(start, end, step, confidence, **diffusion):
    """A request in the block [start, end) of its answer, `step` steps in, after steps of these mean confidences."""
    request = asked(**diffusion)
    request.block = Block(
        1, 2 + start, 2 + end, num_masked=end - start, fresh=0, visible_end=request.canvas_end, step=step
    )
    request.history.mean_confidence = list(confidence)
    request.decoding_steps = len(confidence)
    return request


def test_the_canvas_is_what_was_asked_for():
    request = asked(max_tokens=50)
    assert request.canvas_end - request.num_prompt_tokens == 50


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [([], 24), ([0.0], 4), ([1.0], 64), ([0.5], 34), ([0.0, 1.0], 34), ([0.0, 0.0, 1.0, 1.0], 64), ([0.999], 63)],
)
def test_a_sure_model_gets_long_blocks(confidence, expected):
    request = asked()
    request.history.mean_confidence = confidence
    assert CAD.block_length(request) == expected


@pytest.mark.parametrize(("initial", "expected"), [(2, 4), (24, 24), (100, 64)])
def test_the_first_block_keeps_within_the_limits(initial, expected):
    assert CAD.block_length(asked(initial_block_length=initial)) == expected


def accepted(request, confidence):
    p = np.asarray(confidence, np.float64)
    scores = Scores(request.targets[: len(p)], np.zeros(len(p), np.int64), np.log(p / (1 - p)))
    return CAD.select(request, scores).tolist()


@pytest.mark.parametrize(
    ("step", "threshold"), [(0, 0.85), (12, 0.625), (24, 0.4), (48, 0.4)], ids=lambda value: str(value)
)
def test_the_threshold_falls_within_the_block(step, threshold):
    request = opened(0, 24, step, [0.5] * step)
    assert accepted(request, [0.999, threshold + 1e-6, threshold - 1e-6]) == [True, True, False]


def test_an_unsure_model_gets_more_steps_in_a_longer_block():
    """(24 + (90 - 24) x 0.5) x 48 / 24 = 114 steps; step 57 is half way."""
    request = opened(24, 72, 57, [0.5, 0.5] + [0.9] * 57)
    assert accepted(request, [0.999, 0.625 + 1e-6, 0.625 - 1e-6]) == [True, True, False]


def test_the_best_is_always_taken():
    assert accepted(asked(), [0.1, 0.3, 0.2]) == [False, True, False]


@pytest.mark.parametrize(
    ("start", "confidence", "tokens", "expected"),
    [
        (0, [], [], 800),
        (0, [0.2], [], 1000),
        (64, [0.7], [], 70),
        (64, [0.5], [], 84),
        (64, [0.2], [], 105),
        (64, [0.9], [], 56),
        (64, [0.9, 0.9, 0.7], [], 72),
        (100, [0.7], [], 90),
        (64, [0.7], [3] * 8, 210),
        (64, [0.7], [1, 2, 3, 4, 5, 6, 5, 6], 70),
        (64, [0.7], [3, 3, 3, 3], 70),
    ],
)
def test_the_vocabulary_follows_progress_confidence_and_repetition(start, confidence, tokens, expected):
    request = opened(start, start + 16, 0, confidence)
    request.history.tokens = tokens
    assert CAD.needs(request) == Needs(vocabulary=expected)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3], 0.0),
        ([9, 9, 9, 9, 5, 5, 5, 5], 1.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.5),
        ([8, 9, 1, 2, 3, 1, 2, 3], 0.375),
        ([8, 9, 7, 6, 1, 2, 1, 2], 0.25),
        ([1, 2, 3, 4, 5, 6, 7, 8], 0.0),
    ],
)
def test_a_repetition_is_the_longest_repeated_end(tokens, expected):
    assert _repetition(tokens) == expected


def plan(num_targets, temperature=0.0):
    sampling = SamplingParams(max_tokens=num_targets, temperature=temperature)
    diffusion = DiffusionParams(block_length=num_targets)
    request = Request.new(Submission(request_id="r", prompt_ids=[1], sampling=sampling, diffusion=diffusion), SPEC)
    rows = np.arange(request.canvas_end)
    return StepPlan(request, rows, np.full(len(rows), request.canvas_end), request.targets)


@pytest.mark.parametrize("vocab", [260, 4000, 4007])
@pytest.mark.parametrize("count", [2, 35, 249, 250, 260])
def test_the_best_of_the_best_groups_are_the_best(vocab, count):
    logits = torch.randn(8, vocab)
    values, tokens = top(logits, count)
    assert torch.equal(values, logits.topk(count).values)
    assert torch.equal(logits.gather(1, tokens), values)
    assert all(len(set(row.tolist())) == count for row in tokens)


def test_of_equally_probable_tokens_the_first_is_proposed_whatever_the_neighbours_ask_for():
    logits = torch.randn(8, VOCAB)
    logits[:, [1700, 20, MASK, 3000]] = 9.0
    for size in (4, 35, 300, 2000):
        [scores] = score(logits.clone(), [plan(8)], MASK, [Needs(vocabulary=size)])
        assert scores.tokens.tolist() == [20] * 8


@pytest.mark.parametrize("by_entropy", [False, True])
@pytest.mark.parametrize("size", [2, 35, 800, VOCAB])
def test_confidence_over_the_most_probable_tokens(size, by_entropy):
    logits = torch.randn(8, VOCAB) * 3
    logits[3, MASK] = 20.0
    [scores] = score(logits.clone(), [plan(8)], MASK, [Needs(vocabulary=size, by_entropy=by_entropy)])
    top = logits.topk(size)
    p = top.values.double().softmax(dim=-1)
    best = torch.where(top.indices[:, 0] == MASK, 1, 0)
    assert scores.tokens.tolist() == top.indices.gather(1, best[:, None]).squeeze(1).tolist()
    expected = 1 / (1 - (p * p.log()).sum(dim=-1)) if by_entropy else p.gather(1, best[:, None]).squeeze(1)
    np.testing.assert_allclose(scores.confidence, expected, rtol=1e-4)


def test_each_request_of_a_batch_has_its_own_vocabulary():
    logits = torch.randn(40, VOCAB) * 3
    plans = [plan(8), plan(8), plan(8, temperature=1.5), plan(8), plan(8)]
    asked = [
        Needs(vocabulary=35),
        Needs(entropy=True),
        Needs(vocabulary=800),
        Needs(),
        Needs(vocabulary=70, by_entropy=True),
    ]
    together = score(logits.clone(), plans, MASK, asked)
    for index, (one, need) in enumerate(zip(plans, asked, strict=True)):
        [alone] = score(logits[8 * index : 8 * index + 8].clone(), [one], MASK, [need])
        assert alone.tokens.tolist() == together[index].tokens.tolist()
        np.testing.assert_allclose(alone.log_odds, together[index].log_odds, atol=1e-5)


def test_a_drawn_token_outside_the_vocabulary_has_no_confidence():
    logits = torch.zeros(200, VOCAB)
    logits[:, :3] = 0.1
    [scores] = score(logits, [plan(200, temperature=1.0)], MASK, [Needs(vocabulary=35)])
    assert (scores.tokens > 3).any()
    outside = np.isneginf(scores.log_odds)
    assert outside.sum() > 100
    assert (scores.confidence[outside] < 1e-100).all()
