"""What top_p and top_k leave, row by row, against their plain definitions, and draws from it."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.kernels.transfer import Upload
from engine.scoring.sampling import DRAWING, NARROWING, Columns, draw, is_narrowed, narrow, parameters

VOCAB = 40
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=39, eos_ids=frozenset(), max_model_len=32_768)


def plan(num_targets=1, **sampling):
    submission = Submission(
        request_id="r",
        prompt_ids=[1, 2],
        sampling=SamplingParams(max_tokens=num_targets, **sampling),
        diffusion=DiffusionParams(block_length=num_targets),
    )
    request = Request.new(submission, SPEC)
    return StepPlan(
        request, np.arange(request.canvas_end), np.full(request.canvas_end, request.canvas_end), request.targets
    )


def kept_by_definition(logits, temperature, top_p, top_k, proposed):
    """Of one row, one token at a time, in Dream's order: temperature, top_p, top_k."""
    p = (logits.double() / (temperature or 1.0)).softmax(-1)
    order, total, kept = p.argsort(descending=True).tolist(), 0.0, set()
    for token in order:
        if total > top_p:
            break
        kept.add(token)
        total += float(p[token])
    return kept & set(order[: top_k or VOCAB]) | {proposed}


def columns(plans):
    upload = Upload(torch.device("cpu"))
    rows = Columns(parameters(plans), {*NARROWING, *DRAWING}, upload)
    upload.send()
    return rows


ASKED = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.sampled_from([1.0, 0.99, 0.7, 0.2, 0.01]), st.integers(0, 60)
)


@given(asked=st.lists(ASKED, min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_each_row_keeps_what_its_own_request_says(asked, seed):
    torch.manual_seed(seed)
    logits = torch.randn(len(asked), VOCAB) * 2
    proposed = logits[:, : VOCAB - 1].argmax(-1)
    plans = [plan(temperature=t, top_p=p, top_k=k) for t, p, k in asked]
    narrowed = narrow(logits, columns(plans), proposed)
    for row, (temperature, top_p, top_k) in enumerate(asked):
        kept = set(torch.isfinite(narrowed[row]).nonzero().squeeze(-1).tolist())
        assert kept == kept_by_definition(logits[row], temperature, top_p, top_k, int(proposed[row]))
        assert torch.equal(narrowed[row][sorted(kept)], logits[row][sorted(kept)])


def test_equals_of_the_last_one_stay():
    """Two logits that bfloat16 made equal: both or neither, whatever order a sort puts them in."""
    logits = torch.full((1, VOCAB), -10.0)
    logits[0, [3, 8, 20]] = torch.tensor([2.0, 1.0, 1.0])
    narrowed = narrow(logits, columns([plan(top_k=2)]), torch.tensor([3]))
    assert torch.isfinite(narrowed[0]).nonzero().squeeze(-1).tolist() == [3, 8, 20]


def test_some_token_always_stays():
    """All probability on the mask, and room for one token: the best other one may still be drawn."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 39], logits[0, 4] = 50.0, 1.0
    narrowed = narrow(logits, columns([plan(top_p=0.1, top_k=1)]), torch.tensor([4]))
    assert torch.isfinite(narrowed[0]).nonzero().squeeze(-1).tolist() == [4, 39]


def test_who_asks_for_it():
    rows = parameters([plan(2), plan(top_p=0.9), plan(top_k=1), plan(temperature=1.0)])
    assert is_narrowed(rows).tolist() == [False, False, True, True, False]


def test_draws_follow_what_is_left():
    """Chi-square of 20,000 draws over the three tokens of top_k 3: 13.8 is the 99.9 % point."""
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
    logits = torch.full((20_000, VOCAB), -torch.inf)
    logits[:, :5] = probabilities.log()
    rows = columns([plan(20_000, temperature=1.0, top_k=3, seed=5)])
    tokens = draw(narrow(logits, rows, torch.zeros(20_000, dtype=torch.int64)), rows, SPEC.mask_id)
    counts = np.bincount(tokens, minlength=5)
    expected = np.array([0.4, 0.3, 0.2]) / 0.9 * 20_000
    assert counts[3:].sum() == 0
    assert ((counts[:3] - expected) ** 2 / expected).sum() < 13.8
