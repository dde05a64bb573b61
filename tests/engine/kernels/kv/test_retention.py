"""What keys are worth keeping, as R-KV's published functions computed it (`Zefan-Cai/R-KV` at d15c976)."""

import json

import pytest
import torch
from safetensors import safe_open

from engine.kernels.kv import retention as kernel
from engine.kernels.kv.retention import importance, redundancy, retention
from tests.conftest import LLADA_TINY

CASES = ("mha", "gqa", "attention_only", "redundancy_only", "dense_copies")


@pytest.fixture(params=CASES)
def case(request):
    with safe_open(LLADA_TINY.parent / "rkv.safetensors", "pt") as stored:
        tensors = {
            name: stored.get_tensor(f"{request.param}.{name}")
            for name in ("q", "k", "importance", "redundancy", "score", "score_global", "kept_global")
        }
        return tensors | json.loads(stored.metadata()["cases"])[request.param]


@pytest.fixture
def quirks():
    with safe_open(LLADA_TINY.parent / "rkv_quirks.safetensors", "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("most_pairs", [1 << 24, 200, 1])
def test_scores_are_those_of_the_published_functions(case, most_pairs, monkeypatch):
    """All similarities at once, and some or one row of them at a time."""
    monkeypatch.setattr(kernel, "MOST_PAIRS", most_pairs)
    q, keys, candidates = case["q"].transpose(0, 1), case["k"], case["n"] - case["window"]
    close(importance(q, keys[:, :candidates], case["kernel"]), case["importance"])
    close(redundancy(keys)[:, :candidates], case["redundancy"])
    scores = retention(q, keys, candidates, case["mix_lambda"], case["kernel"])
    close(scores, case["score"])
    close(scores.mean(dim=0), case["score_global"])
    if case["gap"]:  # without one, which of equals stay is nobody's to say
        best = scores.mean(dim=0).topk(len(case["kept_global"])).indices.sort().values
        assert best.tolist() == case["kept_global"].tolist()


def test_half_precision_is_computed_in_float32():
    q, keys = torch.randn(3, 4, 8), torch.randn(2, 20, 8)
    halves = [each.bfloat16() for each in (q, keys)]
    close(retention(*halves, 17, 0.1), retention(*(each.float() for each in halves), 17, 0.1))


def test_of_equal_keys_the_latest_stay(quirks):
    close(redundancy(torch.ones(1, 12, 8)), quirks["identical_keys.redundancy"])


def test_the_first_token_is_the_last_to_go_where_no_key_is_like_another(quirks):
    values = redundancy(quirks["nobody_similar.k"])
    close(values, quirks["nobody_similar.redundancy"])
    assert values.argmin() == 0


def test_keys_of_zeros_have_scores():
    assert retention(torch.zeros(2, 2, 8), torch.zeros(1, 9, 8), 7, 0.1).isfinite().all()
