"""The kernels for CUDA, in Triton's interpreter, against the functions in torch."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from engine.core.noise import hashed
from engine.kernels import proposals, triton_proposals
from engine.kernels.triton_proposals import best_token, draw, log_odds
from engine.scoring import sampling

DEVICE = torch.device("cpu")
SPAN = 64
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
"""Of NumPy, in which the interpreter computes: infinity minus infinity is NaN, as it should be."""


@pytest.fixture
def spans(monkeypatch):
    """Short spans, so that few tokens are several."""
    monkeypatch.setattr(triton_proposals, "_SPAN", SPAN)


def random_logits(rows, vocab, dtype=torch.float32, seed=0):
    """Rows that stand apart in memory, with NaN between them."""
    wide = torch.full((rows, vocab + 3), torch.nan, dtype=dtype)
    wide[:, :vocab] = 4 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    return wide.to(DEVICE)[:, :vocab]


def check_scores(logits, mask_id):
    """`best_token`, and `log_odds` of its tokens and of others, equal those in torch."""
    expected, _ = proposals._best_token(logits.float().clone(), mask_id)
    tokens, odds = best_token(logits, mask_id)
    assert tokens.tolist() == expected.tolist()
    assert tokens.dtype == torch.int64
    assert odds.dtype == torch.float32
    others = (7 * tokens + 1) % logits.shape[1]
    for some, own in (tokens, odds), (tokens, log_odds(logits, tokens)), (others, log_odds(logits, others)):
        wanted = proposals._log_odds(logits.float().clone(), some)
        torch.testing.assert_close(own, wanted, atol=2e-6, rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("vocab", "mask_id"),
    [(2, 0), (5, None), (SPAN - 1, 0), (SPAN, SPAN - 1), (SPAN + 1, SPAN), (3 * SPAN + 7, None)],
)
def test_scores_equal_torch(vocab, mask_id, spans):
    check_scores(random_logits(3, vocab), mask_id)


def test_the_mask_is_not_proposed_even_if_it_is_the_best(spans):
    logits = random_logits(3, 3 * SPAN)
    mask_id = int(logits[1].argmax())
    check_scores(logits, mask_id)
    assert mask_id not in best_token(logits, mask_id)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_each_dtype(dtype):
    check_scores(random_logits(1, 5_003, dtype), 5_000)


@pytest.mark.slow
def test_scores_over_a_published_vocabulary():
    check_scores(random_logits(1, 126_464, torch.bfloat16), 126_336)


def test_the_lowest_of_equal_tokens_is_proposed(spans):
    logits = random_logits(2, 3 * SPAN).clamp(max=2.0)
    check_scores(logits, int(logits[0].argmax()))
    assert best_token(torch.zeros_like(logits), 0)[0].tolist() == [1, 1]


def test_log_odds_of_a_sure_model_are_precise(spans):
    """Where the token's probability rounds to 1, and whichever span it and its rivals are in."""
    logits = torch.full((2, 3 * SPAN), -100.0, device=DEVICE)
    logits[0, 10], logits[1, 2 * SPAN + 1] = 60.0, 100.0
    logits[:, SPAN + 5] = 20.0
    tokens, odds = best_token(logits, 0)
    assert tokens.tolist() == [10, 2 * SPAN + 1]
    assert odds.tolist() == [40.0, 80.0]
    assert log_odds(logits, tokens).tolist() == [40.0, 80.0]
    check_scores(logits, SPAN + 5)


@pytest.mark.parametrize("mask_id", [1, pytest.param(SPAN + 2, marks=pytest.mark.slow)])
def test_infinite_logits(mask_id, spans):
    logits = torch.full((7, 2 * SPAN + 3), -INF, device=DEVICE)
    logits[0, 70] = 3.0  # a single token
    logits[1, mask_id] = 3.0  # only the mask
    # row 2: none at all
    logits[3, [5, 90]] = torch.tensor([1.0, 2.0], device=DEVICE)
    logits[4, 9], logits[4, 100] = INF, 2.0
    logits[5, [9, 100]] = INF
    logits[6], logits[6, mask_id] = 1.0, INF
    check_scores(logits, mask_id)
    assert best_token(logits, mask_id)[1].tolist()[:2] == [INF, -INF]


@pytest.mark.parametrize("place", [2 * SPAN + 2, pytest.param(7, marks=pytest.mark.slow)])
def test_a_row_with_nan_has_log_odds_of_nan(place, spans):
    """Wherever it is, the mask's place included; other rows are not affected."""
    logits = random_logits(3, 2 * SPAN + 3)
    logits[0, place], logits[1] = torch.nan, torch.nan
    tokens, odds = best_token(logits, 7)
    some = torch.tensor([3, 3, 3], device=DEVICE)
    for own in (odds, log_odds(logits, some), log_odds(logits, torch.full_like(some, place))):
        assert own.isnan().tolist() == [True, True, False]
    for token in (*tokens.tolist(), *drawn(logits, 7)):
        assert 0 <= token < logits.shape[1]
        assert token != 7


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, sampling._RECORD)
    rows["seed"] = rng.integers(-(2**63), 2**63, count)
    rows["position"], rows["step"] = rng.integers(0, 40_000, count), rng.integers(0, 3_000, count)
    rows["temperature"] = rng.choice([0.05, 0.7, 1.0, 3.0], count)
    return rows


def drawn(logits, mask_id, rows=None):
    rows = rows_of(len(logits)) if rows is None else rows
    return draw(logits, *columns_of(rows), mask_id).tolist()


def columns_of(rows):
    return [torch.from_numpy(rows[name].copy()).to(DEVICE) for name in ("temperature", "seed", "position", "step")]


def expected_draws(logits, mask_id, rows=None):
    rows = rows_of(len(logits)) if rows is None else rows
    return proposals._draw(logits.float(), *columns_of(rows), mask_id).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_equal_torch(dtype):
    logits = random_logits(4, 1003, dtype)
    assert drawn(logits, 500) == expected_draws(logits, 500)


@pytest.mark.parametrize("vocab", [2, SPAN, 3 * SPAN + 7])
def test_draws_from_several_spans_equal_torch(vocab, spans):
    logits = random_logits(5, vocab)
    assert drawn(logits, vocab // 2) == expected_draws(logits, vocab // 2)


@pytest.mark.slow
def test_draws_from_a_published_vocabulary():
    logits = random_logits(1, 126_464, torch.bfloat16)
    assert drawn(logits, 126_336) == expected_draws(logits, 126_336)


def test_each_of_seed_position_and_step_changes_the_noise():
    """Of equal logits, so that the noise decides alone."""
    logits, rows = torch.zeros(16, 500, device=DEVICE), np.repeat(rows_of(1), 16)
    rows["seed"][:4] += np.arange(4)
    rows["seed"][4:8] += np.arange(4) << 32
    rows["position"][8:12] += np.arange(4)
    rows["step"][12:] += np.arange(4)
    tokens = drawn(logits, 0, rows)
    assert tokens == expected_draws(logits, 0, rows)
    assert all(len(set(tokens[first : first + 4])) > 2 for first in range(0, 16, 4))


def test_the_only_token_left_is_drawn_whatever_its_noise():
    """The uniform number of the largest hashes would round to 1, and the noise to -inf."""
    rows, token = np.zeros(1, sampling._RECORD), 8_835
    rows["seed"], rows["temperature"] = 8_337, 1.0
    assert np.float32(hashed(8_337, 0, 0, token)) == 2**32
    logits = torch.full((1, token + 99), -INF, device=DEVICE)
    logits[0, token] = logits[0, 30] = 0.0
    assert drawn(logits, 30, rows) == [token]


@triton.jit
def exponentials(uniform, out, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(out + at, triton_proposals._exponential(tl.load(uniform + at)))


def test_exponential_variates_are_precise():
    """Where they are small, too: the tokens that win have such ones."""
    uniform = torch.logspace(-33, -1e-7, 4096, base=2.0, device=DEVICE)
    out = torch.empty_like(uniform)
    exponentials[(1,)](uniform, out, size=4096)
    torch.testing.assert_close(out, -torch.log1p(-uniform), rtol=5e-7, atol=0.0)


@pytest.fixture
def chosen():
    """What `proposals.triton` returns at a start."""
    proposals.triton.cache_clear()
    yield proposals.triton
    proposals.triton.cache_clear()


def of_torch(best_token=proposals._best_token, draw=proposals._draw):
    """Torch's own, as a module of kernels that can be held to them."""
    return SimpleNamespace(
        best_token=lambda logits, mask_id: best_token(logits.float().clone(), mask_id),
        draw=lambda logits, *others: draw(logits.float(), *others),
    )


def test_what_computes_something_else_is_found_out_before_it_is_used():
    """In a dtype of a server."""
    nothing = torch.zeros(21, dtype=torch.int64)
    assert proposals._agree_for(of_torch(), DEVICE, torch.bfloat16)
    for wrong in (of_torch(best_token=lambda *_: (nothing, nothing.float())), of_torch(draw=lambda *_: nothing)):
        assert not proposals._agree_for(wrong, DEVICE, torch.bfloat16)


@pytest.mark.slow
def test_they_are_held_to_torch_before_they_are_used():
    assert proposals._agree_for(triton_proposals, DEVICE, torch.bfloat16)


def test_they_are_used_if_they_agree(chosen, monkeypatch):
    monkeypatch.setattr(proposals, "_agree_on_cuda", lambda _: True)
    assert chosen() is triton_proposals


@pytest.mark.parametrize(
    ("said", "words"), [(False, "something else than torch"), (OSError("gcc"), "do not work here")]
)
def test_else_torch_scores_and_the_log_says_why(chosen, monkeypatch, caplog, said, words):
    def agree(_):
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(proposals, "_agree_on_cuda", agree)
    assert chosen() is None
    assert words in caplog.text


def test_without_triton_torch_scores(chosen, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(proposals, "has_triton", lambda: False)
    assert chosen() is None
    assert "no Triton" in caplog.text
