"""The attention kernel for CPUs: its formula at every width of vectors, what it takes, and what happens without it."""

import logging
import shutil

import pytest
import torch

from engine import EngineConfig, load
from engine.kernels import library, native
from engine.kernels import products as kernels
from engine.kernels.products import attention
from tests.engine.formula import watched_by_formula


@pytest.fixture
def kernel(compiled):
    return native.Kernel(compiled)


@pytest.fixture
def attend(kernel):
    """For rows that all see all keys."""
    return kernel.attend_all


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """As a process starts on a machine that has no kernel yet; its cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.kernel.cache_clear()
    yield tmp_path / "unmask"
    native.kernel.cache_clear()


@pytest.fixture
def compiled_before(monkeypatch, tmp_path):
    """The same on a machine that has one, where compiling it again would take seconds."""
    kept = library.library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "unmask").mkdir()
    (tmp_path / "unmask" / kept.name).symlink_to(kept)
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


def tensors(rows=13, visible=37, kv_heads=2, group=2, head_dim=8):
    """Strided as an engine's are: queries by the fused projection, keys and values a part of each head's slots."""
    torch.manual_seed(0)
    q = torch.randn(rows, kv_heads * (group + 2), head_dim)[:, : kv_heads * group]
    keys, values = torch.randn(2, kv_heads, visible + 9, head_dim)[:, :, 5 : 5 + visible]
    return q, keys, values


def by_formula(q, keys, values):
    return watched_by_formula(q, keys, values)[0]


@pytest.mark.parametrize("visible", [1, 7, 64, 65, 300])
@pytest.mark.parametrize("rows", [1, 5, 17, 70])
def test_it_is_its_formula(attend, rows, visible):
    for kv_heads, group, head_dim in ((1, 4, 8), (2, 1, 64), (2, 7, 16), (3, 2, 128)):
        q, keys, values = tensors(rows, visible, kv_heads, group, head_dim)
        torch.testing.assert_close(attend(q, keys, values), by_formula(q, keys, values), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("visible", [1, 7, 64, 65, 300])
@pytest.mark.parametrize("rows", [1, 5, 17, 70])
def test_watched_it_is_its_formula_and_its_weights(kernel, rows, visible):
    for kv_heads, group, head_dim in ((1, 4, 8), (2, 1, 64), (2, 7, 16), (3, 2, 128)):
        q, keys, values = tensors(rows, visible, kv_heads, group, head_dim)
        watched = kernel.watch(q, keys, values)
        torch.testing.assert_close(watched, watched_by_formula(q, keys, values), atol=2e-6, rtol=1e-5)


def test_weights_are_of_the_largest_score_there_is(kernel):
    """Not of the largest of their tile: here scores grow from tile to tile."""
    q, keys, values = tensors(visible=300)
    q[:], keys[:] = 1.0, torch.arange(300.0).view(1, -1, 1) / 30
    torch.testing.assert_close(kernel.watch(q, keys, values), watched_by_formula(q, keys, values), atol=2e-6, rtol=1e-5)


def test_one_key_that_outweighs_all_is_met_anywhere(attend):
    """Sums are scaled down when a larger score comes; scores themselves may be large."""
    for at in (0, 1, 63, 64, 100, 199):
        q, keys, values = tensors(visible=200)
        keys[:, at] = 500.0
        q[:] = 1.0
        torch.testing.assert_close(attend(q, keys, values), values[:, at].repeat_interleave(2, dim=0).expand_as(q))


def test_what_is_no_number_stays_with_its_row_or_head(attend):
    q, keys, values = tensors(rows=40)
    sound = attend(q, keys, values)
    broken = q.clone()
    broken[3] = torch.nan
    out = attend(broken, keys, values)
    assert out[3].isnan().all()
    assert torch.equal(out[4:], sound[4:])
    keys[1, 20] = torch.nan
    out = attend(q, keys, values)
    assert out[:, 2:].isnan().all()
    assert torch.equal(out[:, :2], sound[:, :2])


def test_threads_change_nothing(attend):
    before, (q, keys, values) = torch.get_num_threads(), tensors(rows=100, visible=500)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(attend(q, keys, values))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@torch.inference_mode()
def test_it_takes_what_it_is_made_for_and_nothing_else():
    q, keys, values = tensors()
    assert native.takes(q, keys, values)
    assert not native.takes(q.bfloat16(), keys.bfloat16(), values.bfloat16())
    assert not native.takes(*(tensor.to("meta") for tensor in (q, keys, values)))
    assert not native.takes(q.mT.contiguous().mT, keys, values)
    assert not native.takes(q, keys.mT.contiguous().mT, values)
    assert not native.takes(q, keys, values.clone())
    assert not native.takes(*tensors(head_dim=12))
    assert not native.takes(*tensors(head_dim=264))
    with torch.inference_mode(False), torch.enable_grad():
        assert not native.takes(q, keys, values)


@torch.inference_mode()
def test_attention_is_its_business_where_it_takes_it(monkeypatch):
    assert native.kernel()
    calls, attend = [], native.Kernel.attend
    monkeypatch.setattr(native.Kernel, "attend", lambda *arguments: calls.append(1) or attend(*arguments))
    for head_dim in (8, 12):
        q, keys, values = tensors(head_dim=head_dim)
        torch.testing.assert_close(attention(q, keys, values), by_formula(q, keys, values), atol=1e-6, rtol=1e-5)
    assert calls == [1]


@pytest.fixture(scope="session")
def made():
    """This machine's library: what makes it takes ten seconds, and has been called by whoever came first."""
    return library.library()


def test_it_is_compiled_once_on_a_machine(made, anew, monkeypatch):
    monkeypatch.setattr(library, "compile_to", lambda path: shutil.copy(made, path))
    assert native.kernel()
    [kept] = anew.iterdir()
    native.kernel.cache_clear()
    monkeypatch.setattr(library, "compile_to", None)
    assert native.kernel()
    assert list(anew.iterdir()) == [kept], "and nothing half done beside it"


def test_what_another_compiler_made_is_not_used(compiled_before, monkeypatch):
    assert native.kernel()
    native.kernel.cache_clear()
    monkeypatch.setenv("CXX", "none")
    assert native.kernel() is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CXX", "no-such-compiler", "No such file"),
        ("CXX", "false", "non-zero exit status"),
        ("CXX", "c++ -no-such-flag", "no-such-flag"),
        ("XDG_CACHE_HOME", "/dev/null", "Not a directory"),
        ("PATH", "/nowhere", "no C++ compiler"),
    ],
)
def test_without_a_compiler_the_log_says_why(anew, monkeypatch, caplog, name, value, reason):
    caplog.set_level(logging.INFO, library.__name__)
    monkeypatch.setenv(name, value)
    assert native.kernel() is None
    [record] = caplog.records
    assert reason in record.getMessage()


def test_nor_does_a_user_without_a_home_need_one(anew, monkeypatch, caplog):
    caplog.set_level(logging.INFO, library.__name__)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it does for an unknown user
    assert native.kernel() is None
    assert "home" in caplog.text


def test_one_that_computes_something_else_is_not_used(compiled_before, monkeypatch, caplog):
    attend = native.Kernel.attend
    monkeypatch.setattr(native.Kernel, "attend", lambda *arguments: attend(*arguments) * 1.001)
    assert native.kernel() is None
    assert "not used" in caplog.text


@pytest.mark.slow
def test_golden_rows_with_torchs_kernels(llada_tiny, golden, submission, run, monkeypatch):
    """Every thirtieth one, as a machine without a compiler decodes them."""
    monkeypatch.setattr(native, "kernel", lambda: None)
    monkeypatch.setattr(kernels, "FEW_WEIGHTS", 2**10)
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu"))
    rows = golden[::30]
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        assert results[str(number)][0] == row["output"], f"row {30 * number}"
