"""The scoring kernels for CPUs against their twins in torch, at every width of vectors, and what is without them."""

import pytest
import torch

from engine import EngineConfig, load
from engine.core.noise import hashed
from engine.kernels import native_proposals, proposals
from engine.kernels.products import linear, packed

LLADAS = 126_464
SIZES = [(1, 2), (3, 7), (2, 100), (5, 4095), (2, 4096), (3, 4097), (33, 300), (2, 3 * 4096 + 31)]
"""Rows and vocabularies: less than a vector, parts that are full or hold a single token, more rows than threads."""


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def kernel(compiled):
    return native_proposals.Kernel(compiled)


@pytest.fixture
def with_threads():
    """`with_threads(work, count)`: what `work()` returns on so many threads."""
    before = torch.get_num_threads()

    def run(work, count):
        torch.set_num_threads(count)
        return work()

    yield run
    torch.set_num_threads(before)


def assert_as_torch(kernel, logits, mask_id, tokens=None):
    """Best tokens exactly, their log-odds and those of `tokens` to float32's last bits; NaN and infinities alike."""
    before = logits.clone()
    (best, odds), (expected, expected_odds) = (
        function(logits, mask_id) for function in (kernel.best_token, proposals._best_token)
    )
    assert best.tolist() == expected.tolist()
    close = {"atol": 5e-6, "rtol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(odds, expected_odds, **close)
    tokens = torch.randint(logits.shape[-1], (len(logits),)) if tokens is None else tokens
    torch.testing.assert_close(kernel.log_odds(logits, tokens), proposals._log_odds(logits, tokens), **close)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_best_tokens_and_log_odds_are_torchs(kernel, rows, vocab):
    for mask_id in {0, vocab // 2, vocab - 1, None}:
        assert_as_torch(kernel, torch.randn(rows, vocab) * 5, mask_id)


def test_with_lladas_vocabulary(kernel):
    assert_as_torch(kernel, torch.randn(3, LLADAS) * 5, mask_id=126_336)


@pytest.mark.parametrize("mask_id", [0, 40, 4096, 8999])
def test_of_equals_the_first_that_is_not_the_mask(kernel, mask_id):
    """Anywhere: in one vector, in two of them, in two parts; and the mask may be the most probable by far."""
    logits = torch.zeros(6, 9000)
    for row, tokens in enumerate(([3, 4], [40, 41], [17, 4095, 4096], [4096, 4097, 8999], [8998, 8999], [])):
        logits[row, tokens] = 2.5
    assert_as_torch(kernel, logits, mask_id)
    logits[:, mask_id] = 60.0
    assert_as_torch(kernel, logits, mask_id, torch.full((6,), mask_id))


def test_a_sure_model_is_told_apart(kernel):
    """By logits so far above all others that float32 has no probability between theirs."""
    logits = torch.randn(4, 5000)
    logits[0, 7], logits[1, 7], logits[2, 4999], logits[3, 4096] = 30.0, 31.0, 200.0, 3e4
    assert_as_torch(kernel, logits, mask_id=11)
    assert kernel.best_token(logits, 11)[1].diff()[0] == pytest.approx(1.0, abs=0.1)


def test_tokens_that_may_not_be_drawn(kernel):
    """-inf: all but some, all but one, whose log-odds are inf, and even all, where there is no number."""
    logits = torch.randn(6, 9000)
    logits[0, 5:8000] = -torch.inf
    logits[1:5] = -torch.inf
    logits[1, [2, 8000]] = 1.0
    logits[2, 4100] = -3.0
    logits[3, [9, 4100]] = torch.tensor([5.0, 1.0])
    assert_as_torch(kernel, logits, mask_id=9, tokens=torch.tensor([0, 8000, 4100, 4100, 3, 4096]))
    odds = kernel.best_token(logits, 9)[1]
    assert odds[2] == torch.inf
    assert odds[4].isnan()


def test_infinite_logits_are_what_they_are_in_torch(kernel):
    logits = torch.randn(4, 5000)
    logits[0, 100] = logits[1, 9] = logits[2, 100] = logits[2, 4200] = torch.inf
    assert_as_torch(kernel, logits, mask_id=9)


@pytest.mark.parametrize("place", [0, 1, 9, 4095, 4096, 4999])
def test_what_is_no_number_is_found_anywhere_and_stays_in_its_row(kernel, place):
    """At the mask, at the token itself, and beside infinities, too."""
    logits = torch.randn(5, 5000)
    sound, expected = kernel.best_token(logits, 9)
    logits[1, place] = logits[3, place] = torch.nan
    logits[3, :] = torch.where(logits[3].isnan(), torch.nan, -torch.inf)
    tokens, odds = kernel.best_token(logits, 9)
    assert odds.isnan().tolist() == [False, True, False, True, False]
    assert tokens[::2].tolist() == sound[::2].tolist()
    assert odds[::2].tolist() == expected[::2].tolist()
    assert kernel.log_odds(logits, torch.full((5,), place)).isnan().tolist() == [False, True, False, True, False]
    assert kernel.log_odds(logits, torch.full((5,), 77)).isnan().tolist() == [False, True, False, True, False]


def test_rows_may_lie_apart(kernel):
    wide = torch.randn(7, 6000)
    for logits in (wide[:, 500:5500], wide[::2, :5000]):
        assert_as_torch(kernel, logits, mask_id=11)
        heat, states = torch.full((len(logits),), 0.8), hashed(torch.arange(len(logits)))
        expected = proposals.noisy(logits, heat, states, 11).argmax(dim=-1)
        assert kernel.draw(logits, heat, states, 11)[0].tolist() == expected.tolist()
        weight = torch.randn(300, 5000)
        torch.testing.assert_close(kernel.product(logits, weight), logits @ weight.T, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_noise_is_torchs(kernel, rows, vocab):
    """The largest noisy logit and the one behind it. With a single token that is not the mask, nothing is behind."""
    logits, heat = torch.randn(rows, vocab), torch.linspace(0.0, 2.0, rows)
    states, mask_id = hashed(torch.arange(rows) + 7), vocab // 2
    tokens, *leaders = kernel.draw(logits, heat, states, mask_id)
    expected = torch.cat((proposals.noisy(logits, heat, states, mask_id), torch.full((rows, 1), -torch.inf)), dim=-1)
    torch.testing.assert_close(torch.stack(leaders, dim=-1), expected.topk(2).values, atol=1e-5, rtol=1e-6)
    is_clear = leaders[0] - leaders[1] > 1e-4
    assert tokens[is_clear].tolist() == expected.argmax(dim=-1)[is_clear].tolist()


def last_bits_undone(hash_):
    """The number that `lowbias32` mixes to this one."""
    x = hash_ ^ hash_ >> 16
    x = x * pow(0x846CA68B, -1, 2**32) % 2**32
    x = x ^ x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("hash_", [0, 1, 2**31, 2**32 - 257, 2**32 - 1])
def test_noise_of_the_smallest_and_largest_hashes(kernel, hash_):
    """Finite: the largest round to a uniform number of 1, where the only token left must win all the same."""
    logits = torch.full((1, 5000), -torch.inf)
    logits[0, 4321] = 0.0
    states = torch.tensor([((last_bits_undone(hash_) ^ 4321) - 0x9E3779B9) % 2**32])
    token, best, second = kernel.draw(logits, torch.ones(1), states, 9)
    assert (token.item(), second.item()) == (4321, -torch.inf)
    torch.testing.assert_close(best, proposals.noisy(logits, torch.ones(1), states, 9).amax(dim=-1), atol=1e-6, rtol=0)


@pytest.fixture
def by_torch(monkeypatch):
    """The rows that torch draws, one after the other."""
    drawn, draw = [], proposals._draw
    monkeypatch.setattr(proposals, "_draw", lambda logits, *rest: drawn.append(len(logits)) or draw(logits, *rest))
    return drawn


def rows_of(count):
    return torch.arange(count) * 7919, torch.arange(count) + 3, torch.arange(count) % 8


def test_drawn_tokens_are_exactly_torchs(by_torch):
    """Of rows as flat and as sharp as models have them; hardly any is too close for the kernel's own logarithms."""
    rows = 512
    logits = torch.randn(rows, 4096) * torch.linspace(0.01, 8.0, rows)[:, None]
    for temperature in (0.01, 0.7, 2.0):
        arguments = logits, torch.full((rows,), temperature), *rows_of(rows), 17
        assert torch.equal(proposals.draw(*arguments), proposals._draw(*arguments))
        assert by_torch.pop() == rows
    assert len(by_torch) < 10


def test_a_draw_that_is_too_close_is_torchs(by_torch):
    """Two tokens a rounding apart at a temperature whose noise is less than that, and a row of broken logits."""
    logits = torch.randn(4, 500)
    logits[1, [30, 40]] = torch.tensor([1e3, 1e3 + 6e-5])
    logits[2] = torch.nan
    arguments = logits, torch.full((4,), 1e-6), *rows_of(4), 17
    assert (
        proposals.draw(*arguments)[[0, 1, 3]].tolist()
        == proposals.noisy(logits, arguments[1], hashed(*arguments[2:5]), 17).argmax(dim=-1)[[0, 1, 3]].tolist()
    )
    assert by_torch == [1, 1]


@pytest.mark.parametrize("vocab", [1, 5, 191, 192, 193, 769, 2000])
@pytest.mark.parametrize("rows", [1, 8, 9, 31, 70])
def test_proposals_are_those_of_the_product(kernel, rows, vocab):
    """Of the very same logits: tokens are equal, even where two tokens' weights are."""
    for dim in (1, 64, 300):
        hidden, weight = torch.randn(rows, dim), torch.randn(vocab, dim)
        weight[vocab // 3] = weight[vocab // 2]
        logits = kernel.product(hidden, weight)
        expected = hidden.double() @ weight.T.double()
        torch.testing.assert_close(logits.double(), expected, atol=2e-5, rtol=1e-5)
        for mask_id in {0, vocab // 3, vocab - 1}:
            tokens, odds = kernel.propose(hidden, weight, mask_id)
            best, best_odds = proposals._best_token(logits, mask_id)
            if vocab > 1:
                assert tokens.tolist() == best.tolist()
                torch.testing.assert_close(odds, best_odds, atol=1e-5, rtol=1e-6)


def test_a_sure_models_proposals(kernel):
    """Logits hundreds apart, the largest in any tile and part, the mask's above them."""
    hidden, weight = torch.eye(6, 40) * 20, torch.randn(3000, 40)
    for row, token in enumerate((0, 191, 192, 800, 2000, 2999)):
        weight[token, row] = 30.0
    weight[77] = 15.0
    tokens, odds = kernel.propose(hidden, weight, 77)
    best, best_odds = proposals._best_token(kernel.product(hidden, weight), 77)
    assert tokens.tolist() == best.tolist() == [0, 191, 192, 800, 2000, 2999]
    torch.testing.assert_close(odds, best_odds, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("token", [0, 77, 500, 999])
def test_proposals_of_what_is_no_number(kernel, token):
    """A broken row of hidden states, and a broken weight, which all rows see, the mask's too."""
    hidden, weight = torch.randn(20, 16), torch.randn(1000, 16)
    sound = kernel.propose(hidden, weight, 77)
    hidden[3, 5] = torch.nan
    tokens, odds = kernel.propose(hidden, weight, 77)
    assert odds.isnan().nonzero().flatten().tolist() == [3]
    assert 0 <= tokens[3] < 1000
    others = torch.arange(20) != 3
    assert torch.equal(tokens[others], sound[0][others])
    assert torch.equal(odds[others], sound[1][others])
    weight[token, 2] = torch.nan
    assert kernel.propose(hidden, weight, 77)[1].isnan().all()


def test_neither_threads_nor_neighbours_change_a_bit(kernel, with_threads):
    logits, hidden, weight = torch.randn(37, 9000) * 4, torch.randn(37, 64), torch.randn(9000, 64)
    heat, states = torch.rand(37), hashed(torch.arange(37))

    def all_functions(some=slice(None)):
        tokens, odds = kernel.best_token(logits[some], 9)
        drawn = kernel.draw(logits[some], heat[some], states[some], 9)
        others = kernel.log_odds(logits[some], drawn[0])
        proposed = kernel.propose(hidden[some], weight, 9)
        return tokens, odds, *drawn, others, *proposed, kernel.product(hidden[some], weight)

    expected = all_functions()
    for threads in (1, 2, 3):
        for found, value in zip(with_threads(all_functions, threads), expected, strict=True):
            assert torch.equal(found, value)
    for some in (slice(1), slice(5, 13), slice(20, 37)):
        for found, value in zip(all_functions(some), expected, strict=True):
            assert torch.equal(found, value[some])


def test_they_take_what_they_are_made_for_and_nothing_else(monkeypatch):
    logits, weight = torch.randn(3, 50), torch.randn(50, 8)
    assert native_proposals.takes(logits)
    assert native_proposals.takes(logits[:, 10:30])
    for other in (logits.bfloat16(), logits.to("meta"), logits.T, logits.double()):
        assert not native_proposals.takes(other)
    with torch.inference_mode(False), torch.enable_grad():
        assert not native_proposals.takes(logits)
    assert proposals.fuses(weight)
    for other in (weight.bfloat16(), weight.to("meta"), weight.T, packed(weight)):
        assert not proposals.fuses(other)
    monkeypatch.setattr(proposals, "kernel", lambda: None)
    assert not proposals.fuses(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_them_torch_does_it(monkeypatch, dtype):
    monkeypatch.setattr(proposals, "kernel", lambda: None)
    hidden, weight = torch.randn(5, 16).to(dtype), torch.randn(300, 16).to(dtype)
    logits = linear(hidden, weight)
    assert torch.equal(proposals.head(hidden, weight), logits)
    for tokens, odds in (proposals.propose(hidden, weight, 9), proposals.best_token(logits, 9)):
        p = logits.double().softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
        torch.testing.assert_close(odds.double(), p.logit(), atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
        assert 9 not in tokens.tolist()


def test_ones_that_compute_something_else_are_not_used(monkeypatch, caplog):
    for name in ("best_token", "log_odds", "draw", "product", "propose"):
        function = getattr(native_proposals.Kernel, name)

        def wrong(*arguments, function=function):
            out = function(*arguments)
            return (out[0], *(part * 1.001 for part in out[1:])) if isinstance(out, tuple) else out * 1.001

        proposals.kernel.cache_clear()
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(native_proposals.Kernel, name, wrong)
            assert proposals.kernel() is None
        assert "not used" in caplog.text
    proposals.kernel.cache_clear()
    assert proposals.kernel()


@pytest.mark.slow
def test_golden_rows_without_them(llada_tiny, golden, submission, run, monkeypatch):
    """Every twelfth one, as a machine without a compiler decodes them."""
    monkeypatch.setattr(proposals, "kernel", lambda: None)
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu"))
    rows = golden[::12]
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        assert results[str(number)][0] == row["output"], f"row {12 * number}"
