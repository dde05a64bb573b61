"""d2Cache: against what the published code recomputed, its functions one by one, and its cost for others."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine import EngineConfig, load
from engine.cache.d2 import _inflate, _nucleus
from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.density import certainty_density
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.kernels import attention

SPEC = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset(), max_model_len=4096)


@pytest.fixture(scope="session")
def rows(llada_tiny):
    """Eight generations of the published code, its three defects mended, in the words of the other golden rows."""
    published = json.loads((llada_tiny / "d2cache.json").read_text())
    return [{**row, **row["cache"], "cache": "d2", "unmask": unmask(row)} for row in published]


def unmask(row):
    return "threshold" if "threshold" in row else "certainty"


@pytest.fixture(scope="session")
def functions(llada_tiny):
    return load_file(llada_tiny / "d2cache_functions.safetensors")


@pytest.fixture
def rows_per_step(engine, monkeypatch):
    """Request id -> the positions of each of its steps, as the engine runs."""
    computed, commit = {}, engine.scheduler.commit

    def watch(choices):
        for choice in choices:
            computed.setdefault(choice.plan.request.id, []).append(choice.plan.rows.tolist())
        return commit(choices)

    monkeypatch.setattr(engine.scheduler, "commit", watch)
    return computed


def test_every_golden_row_in_one_batch(engine, rows, submission, run, rows_per_step):
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        canvas = list(range(len(row["prompt"]) + row["gen_length"]))
        assert results[str(number)][0] == row["output"], f"row {number}"
        expected = [canvas if positions is None else positions for positions in row["computed_positions"]]
        assert rows_per_step[str(number)] == expected, f"row {number}"
    assert {row["unmask"] for row in rows} == {"threshold", "certainty"}


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_golden_rows_alone(engine, rows, submission, run, rows_per_step, stride):
    for number, row in enumerate(rows[::stride]):
        tokens, _, usage = run(engine, submission(number, **row))[str(number)]
        assert tokens == row["output"], f"row {number}"
        assert usage.forwards == len(row["computed_positions"])
        assert usage.rows_computed == sum(map(len, rows_per_step[str(number)]))


def test_the_density_of_the_published_code(functions):
    for name in ("0_sigma10", "1_sigma4", "2_sigma10"):
        number, sigma = name.split("_sigma")
        density = certainty_density(functions[f"known_{number}"], float(sigma))
        np.testing.assert_allclose(density, functions[f"density_{name}"], atol=5e-7)


@pytest.mark.parametrize(
    ("known", "sigma", "expected"),
    [
        ([1, 1, 0, 0, 0, 0], 2, [0.775256, 0.599660, 0.400256, 0.224231, 0.103246, 0.038488]),
        (
            [1, 0, 0, 1, 0, 1, 0, 1],
            2,
            [0.673762, 0.550972, 0.476515, 0.462191, 0.493799, 0.556180, 0.643783, 0.748220],
        ),
        ([0] * 8, 10, [0.287224, 0.273918, 0.258761, 0.242133, 0.224433, 0.206060, 0.187403, 0.168823]),
    ],
)
def test_the_density_by_its_formula(known, sigma, expected):
    known = np.array(known, np.bool_)
    np.testing.assert_allclose(certainty_density(known, sigma), expected, atol=1e-6)
    length = len(known)
    extended = np.concatenate((np.ones(length), known, np.full(length, known[-1])))
    i, j = np.arange(length)[:, None], np.arange(-length, 2 * length)
    total = np.exp(-(np.arange(-3 * length, 3 * length) ** 2) / (2 * sigma**2)).sum()
    direct = (extended * np.exp(-((i - j) ** 2) / (2 * sigma**2))).sum(axis=1) / total
    np.testing.assert_allclose(certainty_density(known, sigma), direct, atol=1e-7)


@pytest.mark.parametrize("sigma", [42.0, 43.0, 500.0, 1e6])
def test_a_wide_density_is_the_sum_of_its_weights(sigma):
    """Of a long kernel a transform makes what a sum for each position makes of a short one."""
    known, length = np.random.default_rng(0).random(600) < 0.3, 600
    extended = np.concatenate((np.ones(length), known, np.full(length, known[-1])))
    i, j = np.arange(length)[:, None], np.arange(-length, 2 * length)
    weights = np.exp(-((i - j) ** 2) / (2 * sigma**2)) * (abs(i - j) <= 6 * sigma)
    total = np.exp(-(np.arange(-3 * length, 3 * length) ** 2) / (2 * sigma**2)).sum()
    np.testing.assert_allclose(certainty_density(known, sigma), (extended * weights).sum(axis=1) / total, rtol=1e-9)


def test_the_nucleus_of_the_published_code(functions):
    for number in range(3):
        weights = np.where(functions[f"eligible_{number}"], functions[f"scores_{number}"], 0.0)
        chosen = _nucleus(weights.astype(np.float64), 0.3)
        assert chosen.tolist() == functions[f"nucleus_{number}_p0.3"].tolist()


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0, [2, 4, 9]), (1, [2, 4, 9]), (2, [2, 3, 4, 9]), (4, [2, 3, 4, 9]), (5, list(range(2, 10)))],
)
def test_gaps_are_filled_up_to_a_width(width, expected):
    chosen = np.isin(np.arange(12), [2, 4, 9])
    _inflate(chosen, width)
    assert np.flatnonzero(chosen).tolist() == expected


def asked(block_length=8, step=3, **diffusion):
    """A request in the middle: prompt [0, 4), masks up to 36, the last step decoded 6 and 9."""
    diffusion = DiffusionParams(cache="d2", block_length=block_length, **diffusion)
    submission = Submission(
        request_id="r", prompt_ids=[1] * 4, sampling=SamplingParams(max_tokens=32), diffusion=diffusion
    )
    request = Request.new(submission, SPEC)
    request.forwards = request.block.step = step
    request.masked[[4, 6, 9]] = False
    request.history.decoded = np.array([6, 9])
    request.history.confidence[4:] = np.linspace(0.1, 0.9, 32)
    request.history.importance[:] = np.linspace(0.1, 1.0, 36)
    return request


def test_the_first_step_computes_and_scores_the_canvas():
    request = asked(step=0)
    plan = CACHES["d2"].plan(request)
    assert plan.rows.tolist() == list(range(36))
    assert plan.targets.tolist() == np.flatnonzero(request.masked).tolist()
    assert plan.num_open == 5, "of these the open block's may become tokens"


def test_what_was_just_decoded_is_recomputed():
    plan = CACHES["d2"].plan(asked(current_k=1, rollout_p=0.0, inflate_w=0))
    assert {6, 9} <= set(plan.rows.tolist())


def test_the_open_block_comes_first_whatever_the_confidence():
    request = asked(current_k=6, rollout_p=0.0, inflate_w=0)
    request.history.confidence[:12] = 1e-6
    plan = CACHES["d2"].plan(request)
    assert {5, 7, 8, 10, 11} < set(plan.targets.tolist()), "all five masks of the block, and one behind it"
    assert plan.num_open == 5


def test_masks_are_looked_for_up_to_the_end_of_a_block():
    request = asked(current_k=7, rollout_p=0.0, inflate_w=0)
    request.history.confidence[20:] = 1.0
    request.history.importance[:] = 0.0
    request.history.importance[0] = 1.0
    plan = CACHES["d2"].plan(request)
    assert plan.targets.max() < 20, "the seventh mask is in the second block, and that ends there"


def test_a_new_block_has_a_candidate_even_if_others_are_surer():
    request = asked(block_length=2, step=3, current_k=4, rollout_p=0.0, inflate_w=0)
    request.block.start, request.block.end, request.block.step = 10, 12, 0
    request.masked[:10] = False
    request.history.confidence[10:12], request.history.confidence[12:] = 0.0, 1.0
    request.history.importance[:] = 0.0
    request.history.importance[0] = 1.0
    assert CACHES["d2"].plan(request).num_open >= 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada-tiny", "dream-tiny"])
def test_with_everything_selected_it_is_no_cache_at_all(family, llada_tiny, submission, run):
    """Exact for both families: the shifted one reads a token's logits one row before it."""
    engine = load(EngineConfig(model=str(llada_tiny.parent / family)))
    rng = random.Random(3)
    for number in range(6):
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
        row = {"prompt": prompt, "gen_length": 32, "block_length": 8, "ignore_eos": True, "threshold": 0.3}
        exact = run(engine, submission(number, cache="none", **row))
        every = run(engine, submission(number, cache="d2", current_k=rng.choice([1, 64]), rollout_p=1.0, **row))
        assert every == exact


def test_a_shifted_family_computes_the_rows_that_carry_the_logits(dream_tiny, submission, run, monkeypatch):
    engine, steps = load(EngineConfig(model=str(dream_tiny))), []
    schedule = engine.scheduler.schedule

    def watch():
        plans = schedule()
        steps.extend((plan, int(plan.request.masked.sum())) for plan in plans)
        return plans

    monkeypatch.setattr(engine.scheduler, "schedule", watch)
    row = {"prompt": [5, 6, 7], "gen_length": 48, "block_length": 16, "ignore_eos": True}
    run(engine, submission(cache="d2", current_k=3, rollout_p=0.05, inflate_w=0, **row))
    for plan, num_masked in steps:
        assert np.isin(plan.targets - 1, plan.rows).all()
        assert len(plan.targets) >= min(3, num_masked)
    assert np.mean([len(plan.rows) for plan, _ in steps[1:]]) < 48 / 2


def test_only_those_who_ask_for_weights_pay_for_them(engine, submission, monkeypatch):
    """Weights are made of d2's rows and of no others, and a step still copies from the device once."""
    watched, copies = [], []
    attend, to_host = attention.attend_watched, torch.Tensor.cpu
    monkeypatch.setattr(attention, "attend_watched", lambda q, k, v, s: watched.append(s) or attend(q, k, v, s))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(1) or to_host(tensor))
    layers, row = engine.runner.model.config.num_layers, {"gen_length": 32, "block_length": 16, "ignore_eos": True}
    for number, cache in enumerate(["dual", "none", "prefix"]):
        engine.submit(engine.new_request(submission(number, cache=cache, unmask="fixed", **row)))
    engine.step()
    assert watched == []
    request = engine.new_request(submission("d2", cache="d2", unmask="fixed", **row))
    engine.submit(request)
    copies.clear()
    for _ in range(5):
        watched.clear()
        rows = request.rows_computed
        engine.step()
        rows = request.rows_computed - rows
        assert [segment.stop - segment.start for segment in watched] == [rows] * layers
    assert len(copies) == 5
