"""Dream's own sampler: golden rows, its schedule, chance, and top_p and top_k among neighbours of all policies."""

import json
import random

import numpy as np
import pytest
import torch

from engine import EngineConfig, FinishReason, InvalidRequest, load
from engine.bench.reference import decode, decode_as_dream, factor, fixed, threshold
from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.scores import Scores
from engine.unmask.dream import dream_schedule, dream_times
from engine.unmask.policies import UNMASKS, effective

MASK = 256
SPEC = ModelSpec(family="toy", vocab_size=10, mask_id=9, eos_ids=frozenset({8}), max_model_len=32_768)


@pytest.fixture
def dream(dream_tiny):
    return load(EngineConfig(model=str(dream_tiny)))


@pytest.fixture(scope="module")
def golden_rows(dream_tiny):
    """27 generations of the published sampler, as this engine's requests."""
    rows = json.loads((dream_tiny / "generations.json").read_text())
    assert len(rows) == 27
    return [{**row, "cache": "none", "unmask": "dream"} for row in rows]


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_golden_rows_alone(dream, golden_rows, submission, run, stride):
    for number, row in enumerate(golden_rows[::stride]):
        tokens, reason, usage = run(dream, submission(number, **row))[str(number)]
        assert tokens == row["output"], f"row {number}"
        assert usage.forwards == len(dream_schedule(row["gen_length"], row["steps"], 1e-3))
        assert usage.rows_computed == usage.forwards * (len(row["prompt"]) + row["gen_length"])
        assert reason is FinishReason.LENGTH


@pytest.mark.slow
def test_every_golden_row_among_the_other_policies(dream, golden_rows, submission, run):
    """All at once, beside threshold, fixed and factor rows with every cache, whose answers are the plain loops'."""
    rng = random.Random(20261122)
    others = [
        {"prompt": row["prompt"], "gen_length": 32, "block_length": 8, "cache": cache, "unmask": unmask}
        | {"threshold": 0.2, "factor": 2.0, "ignore_eos": True}
        for row in golden_rows[::27]
        for cache in ("none", "prefix", "dual")
        for unmask in ("threshold", "fixed", "factor")
    ]
    mixed = list(enumerate([*golden_rows, *others]))
    rng.shuffle(mixed)
    results = run(dream, *(submission(number, **row) for number, row in mixed))
    for number, row in enumerate(golden_rows):
        assert results[str(number)][0] == row["output"], f"row {number}"
    for number, row in enumerate(others, start=len(golden_rows)):
        rule = {"threshold": threshold(0.2), "fixed": fixed(8, 8), "factor": factor(2.0)}[row["unmask"]]
        keys = ("gen_length", "block_length", "cache")
        expected = decode(
            dream.runner.model, row["prompt"], mask_id=MASK, rule=rule, shift=1, **{key: row[key] for key in keys}
        )
        assert results[str(number)][0] == expected.tokens, row


def test_the_reference_loop_is_the_published_sampler(dream, golden_rows):
    """A row of each algorithm with many steps and with few; `make test-golden` has it decode all."""
    for row in {(row["alg"], row["steps"] < row["gen_length"]): row for row in golden_rows}.values():
        keys = ("gen_length", "steps", "alg")
        decoded = decode_as_dream(dream.runner.model, row["prompt"], mask_id=MASK, **{key: row[key] for key in keys})
        assert decoded.tokens == row["output"]
        assert decoded.forwards == row["steps"]


@pytest.mark.slow
def test_random_requests_with_top_p_and_top_k(dream, submission, run):
    """12 at once, each with values of its own: read one row's for another's and the orders differ."""
    rng = random.Random(9)
    rows = [
        {
            "prompt": [rng.randrange(260) for _ in range(rng.randint(1, 20))],
            "gen_length": rng.randint(1, 24),
            "steps": rng.choice([1, 3, 8, 24, 40]),
            "alg": rng.choice(["entropy", "maskgit_plus", "topk_margin"]),
            "eps": rng.choice([1e-3, 1e-5, 0.1]),
            "top_p": rng.choice([1.0, 1.0, 0.95, 0.5, 0.05]),
            "top_k": rng.choice([0, 0, 1, 3, 50, 1000]),
        }
        for _ in range(12)
    ]
    asked = {"cache": "none", "unmask": "dream", "ignore_eos": True}
    results = run(dream, *(submission(number, **row, **asked) for number, row in enumerate(rows)))
    differ = []
    for number, row in enumerate(rows):
        decoded = decode_as_dream(dream.runner.model, **{"prompt_ids": row.pop("prompt"), **row}, mask_id=MASK)
        if results[str(number)][0] != decoded.tokens:
            differ.append(row)
    assert differ == []


def test_the_order_depends_on_top_p(dream, golden_rows, submission, run):
    row = {**golden_rows[1], "alg": "maskgit_plus"}
    answers = {
        tuple(run(dream, submission(**row, top_p=top_p, top_k=top_k))["r"][0])
        for top_p, top_k in ((1.0, 0), (0.5, 0), (1.0, 2))
    }
    assert len(answers) == 3


@pytest.mark.parametrize(
    ("masks", "steps", "counts"),
    [
        (256, 256, [0, *[1] * 254, 2]),
        (256, 128, [1, *[2] * 126, 3]),
        (256, 64, [3, *[4] * 62, 5]),
        (512, 512, [0, *[1] * 510, 2]),
        (32, 1, [32]),
    ],
)
def test_the_published_token_counts(masks, steps, counts):
    assert list(dream_schedule(masks, steps, 1e-3)) == [count for count in counts if count]


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_the_schedule_is_that_of_the_published_loop(eps):
    for steps in (1, 2, 3, 12, 31, 32, 100, 257, 512):
        times = torch.linspace(1, eps, steps + 1)
        np.testing.assert_allclose(dream_times(steps, eps), times, rtol=1e-4, atol=2e-7)
        for masks in (1, 7, 48, 128, 512):
            left, counts = torch.tensor(masks), []
            for i in range(steps):
                counts.append(int(left * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(left))
                left = left - counts[-1]
            assert list(dream_schedule(masks, steps, eps)) == [count for count in counts if count]


def request(length, seed=0, **diffusion):
    sampling = SamplingParams(max_tokens=length, seed=seed)
    asked = DiffusionParams(unmask="dream", block_length=5, **diffusion)
    return Request.new(effective(Submission(request_id="r", prompt_ids=[1], sampling=sampling, diffusion=asked)), SPEC)


def test_the_canvas_is_the_block():
    """Whatever `block_length` says: published settings have none, and a server's default is another policy's."""
    asked = request(12)
    assert (asked.block.start, asked.block.end, asked.canvas_end) == (1, 13, 13)
    assert asked.num_blocks == 1


def scores(positions, confidence):
    return Scores(positions, np.zeros(len(confidence), np.int64), np.log(confidence / (1 - confidence)))


def decode_by_chance(asked):
    """Reveals per forward, as index arrays; `asked` ends without a mask."""
    while asked.masked.any():
        targets = asked.targets
        chosen = UNMASKS["dream"].select(asked, scores(targets, np.full(len(targets), 0.5)))
        assert chosen.any()
        yield targets[chosen]
        asked.masked[targets[chosen]] = False
        asked.block.step += 1
        asked.decoding_steps += 1


def test_origin_reveals_each_mask_with_the_probability_of_its_step():
    """Chi-square of 20,000 masks over 8 steps: 24.3 is the 99.9 % point at 7 degrees of freedom."""
    counts = [len(step) for step in decode_by_chance(request(20_000, seed=3, alg="origin", steps=8))]
    times = np.linspace(1, 1e-3, 9)
    expected = np.append(times[:-1] - times[1:], 0) * 20_000
    expected[7] = times[7] * 20_000
    assert ((np.array(counts) - expected[:8]) ** 2 / expected[:8]).sum() < 24.3


def test_origin_passes_over_steps_that_reveal_nothing():
    """Alike for as many steps as you like: of 16 masks, no more forwards than 16."""
    forwards = [len(list(decode_by_chance(request(16, seed=seed, alg="origin", steps=10_000)))) for seed in range(5)]
    assert all(12 <= count <= 16 for count in forwards)
    orders = {tuple(np.concatenate(list(decode_by_chance(request(16, seed=s, alg="origin"))))) for s in range(5)}
    assert len(orders) == 5, "another seed, another order"


def test_alg_temp_draws_in_proportion_to_the_exponential():
    """Which of three goes first: chi-square of 3,000 seeds, 13.8 is the 99.9 % point at 2 degrees of freedom."""
    confidence = np.array([0.9, 0.5, 0.1])
    firsts = np.zeros(3)
    for seed in range(3000):
        asked = request(3, seed=seed, alg="maskgit_plus", alg_temp=0.5, eps=0.0)
        firsts += UNMASKS["dream"].select(asked, scores(asked.targets, confidence))
    weights = np.exp(confidence / 0.5)
    expected = 3000 * weights / weights.sum()
    assert firsts.sum() == 3000
    assert ((firsts - expected) ** 2 / expected).sum() < 13.8


@pytest.mark.parametrize("alg", ["maskgit_plus", "entropy", "topk_margin"])
def test_each_alg_ranks_by_its_own_figure(alg):
    log_odds, entropy, margin = np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.1, 0.9]), np.array([0.1, 0.2, 0.8])
    asked = request(3, alg=alg, eps=0.0)
    needs = UNMASKS["dream"].needs(asked)
    spread = entropy if needs.entropy else None, margin if needs.margin else None
    chosen = UNMASKS["dream"].select(asked, Scores(asked.targets, np.zeros(3, np.int64), log_odds, *spread))
    assert int(chosen.argmax()) == {"maskgit_plus": 0, "entropy": 1, "topk_margin": 2}[alg]
    assert chosen.sum() == 1


def test_chance_is_the_same_alone_and_among_others(dream, submission, run):
    rng = random.Random(11)
    rows = [
        {
            "alg": alg,
            "alg_temp": alg_temp,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "unmask": "dream",
        }
        | {"prompt": [rng.randrange(256) for _ in range(rng.randint(1, 12))], "gen_length": rng.randint(1, 20)}
        for alg in ("maskgit_plus", "entropy", "topk_margin", "origin")
        for alg_temp, temperature, top_p, top_k in ((None, 0.7, 0.9, 0), (0.4, 0.0, 1.0, 5), (0.1, 1.2, 0.5, 9))
    ]
    for number, row in enumerate(rows):  # each cache beside each algorithm and each of the three settings
        row["cache"] = ("none", "prefix", "dual")[(number + number // 3) % 3]
    rows += [{"unmask": "threshold", "temperature": 0.8, "top_p": 0.3}, {"unmask": "fixed", "temperature": 0.8}]
    crowd = run(dream, *(submission(n, seed=n, **row) for n, row in enumerate(rows)))
    for number, row in enumerate(rows):
        alone = run(dream, submission(number, seed=number, **row))
        assert alone[str(number)] == crowd[str(number)], row


def test_prefix_and_dual_freeze_the_prompt_alone(dream, submission):
    """With the canvas as the block, all that either cache keeps is the prompt, but for the row before the block."""
    for cache in ("prefix", "dual"):
        asked = dream.new_request(submission(unmask="dream", cache=cache, prompt=[1, 2, 3, 4], gen_length=8))
        dream.submit(asked)
        dream.step()
        [plan] = dream.scheduler.schedule()
        assert plan.rows.tolist() == list(range(3, 12))
        dream.abort(asked.id)


def test_it_decodes_a_family_without_shift_too(engine, submission, run):
    tokens, _, usage = run(engine, submission(unmask="dream", cache="none", gen_length=20, steps=5))["r"]
    assert len(tokens) == 20
    assert usage.forwards == 5


def test_the_answer_ends_where_the_model_ends_it(dream, submission, run):
    whole, _, full = run(dream, submission(unmask="dream", cache="none", gen_length=24))["r"]
    first = next(token for token in whole if whole.index(token) < 12)
    row = {"unmask": "dream", "cache": "none", "gen_length": 24, "stop_ids": frozenset({first})}
    tokens, reason, usage = run(dream, submission(**row))["r"]
    assert tokens == whole[: whole.index(first)]
    assert reason is FinishReason.STOP
    assert usage.forwards <= full.forwards


@pytest.mark.parametrize(
    ("row", "param"),
    [
        ({"alg": "random"}, "diffusion.alg"),
        ({"alg_temp": -0.1}, "diffusion.alg_temp"),
        ({"alg_temp": float("inf")}, "diffusion.alg_temp"),
        ({"eps": 1.0}, "diffusion.eps"),
        ({"eps": float("nan")}, "diffusion.eps"),
        ({"steps": 10**9}, "diffusion.steps"),
        ({"gen_length": 0}, "max_tokens"),
        ({"gen_length": 2000}, "max_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_bad_requests_name_the_field(dream, submission, row, param):
    with pytest.raises(InvalidRequest) as caught:
        dream.new_request(submission(unmask="dream", **row))
    assert caught.value.param == param
