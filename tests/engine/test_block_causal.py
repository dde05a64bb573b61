"""Block-causal families through the engine: published rows, plain loops, shared pages, small pools.

The rows of `tests/data/` token for token in every way that an engine may run them, and random requests against plain
loops.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import DiffusionParams, SamplingParams, Submission
from engine.cache.block import BlockCache
from engine.cache.policies import CACHES
from engine.kernels import native, proposals
from engine.models import describe
from tests.engine.faulty import FaultyRunner, find, outputs
from tests.golden import fast_dllm, llada2, nemotron, sdar
from tests.golden.__main__ import FAMILIES
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import differences, read_rows
from tests.golden.through_engine import alone, engine_of, together

WAYS = {
    "as it starts": {},
    "without sharing": {"prefix_caching": False},
    "room for one": {"max_model_len": 256, "kv_cache_tokens": 256, "page_size": 8},
    "pages across blocks": {"max_model_len": 256, "kv_cache_tokens": 320, "page_size": 5},
    "prompts in parts": {
        "max_model_len": 256,
        "max_running_requests": 2,
        "max_batch_rows": 128,
        "prefix_caching": False,
    },
}
EVERY_ROW = ("as it starts", "room for one")
"""Ways that all rows go; the others take every sixth."""
SMALL = {"max_model_len": 256, "kv_cache_tokens": 256, "page_size": 8}


@pytest.fixture(params=["sdar_tiny", "fast_dllm_tiny", "sdar_moe_tiny", "llada2_tiny", "nemotron_tiny"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def family(spec):
    return FAMILIES[spec.family]


@pytest.fixture
def spec(folder):
    return describe(folder).spec


LESS_ROOM = {"sdar-moe-tiny", "llada2-tiny", "nemotron-tiny"}
"""Folders whose rows are at most 192 tokens long, and fewer."""


def cramped(folder, settings):
    """The settings, with less room where rows are shorter."""
    is_less = folder.name in LESS_ROOM
    lengths = ("max_model_len", "kv_cache_tokens")
    return {key: value * 3 // 4 if is_less and key in lengths else value for key, value in settings.items()}


def rows_of(family, folder, most=256):
    rows = [row for row in read_rows(folder / "generations.json") if family.takes(row) and row["output"]]
    return [row for row in rows if -(-(len(row["prompt"]) + len(row["output"])) // 64) * 64 <= most]


@pytest.mark.parametrize(
    ("settings", "stride"),
    [
        *(pytest.param(way, 6, id=name) for name, way in WAYS.items()),
        *(pytest.param(WAYS[name], 1, id=f"{name}, all", marks=pytest.mark.slow) for name in EVERY_ROW),
    ],
)
def test_golden_rows_in_one_batch(family, folder, spec, settings, stride):
    if "max_batch_rows" in settings and family is fast_dllm:
        settings = {**settings, "max_batch_rows": 136}  # two blocks of 32, and a row before each, of two requests
    stride = max(stride // 2, 1) if folder.name in LESS_ROOM else stride
    rows = rows_of(family, folder)[::stride]
    engine = engine_of(folder, **cramped(folder, settings))
    made = together(engine, [family.asked(row, str(number)) for number, row in enumerate(rows)])
    wanted = [family.expected(row, spec) for row in rows]
    if "max_batch_rows" in settings:
        made = [{"output": one["output"]} for one in made]  # a prompt in parts takes more forwards
    elif "kv_cache_tokens" in settings:
        made = [{"output": one["output"]} for one in made]  # and so may a request that resumes
        assert engine.stats().preemptions
    assert differences(wanted, made) == []
    assert len(rows) > (40 if folder.name in LESS_ROOM else 80) / stride
    assert engine.stats().kv_pages_used == 0


def test_golden_rows_alone(family, folder, spec):
    rows = rows_of(family, folder)[::7]
    made = alone(engine_of(folder), [family.asked(row, str(number)) for number, row in enumerate(rows)])
    assert differences([family.expected(row, spec) for row in rows], made) == []


@pytest.mark.parametrize("kernel", ["ours", "torch's"])
def test_what_a_free_page_holds_reaches_nobody(family, folder, spec, monkeypatch, kernel):
    if kernel == "torch's":
        monkeypatch.setattr(native, "kernel", lambda: None)
        monkeypatch.setattr(proposals, "kernel", lambda: None)
    engine = engine_of(folder, **cramped(folder, SMALL))
    for tensor in (engine.runner.pool.keys, engine.runner.pool.values):
        tensor.fill_(torch.nan)
    rows = rows_of(family, folder)[:: 2 if folder.name in LESS_ROOM else 6]
    made = together(engine, [family.asked(row, str(number)) for number, row in enumerate(rows)])
    made = [{"output": one["output"]} for one in made]
    assert differences([family.expected(row, spec) for row in rows], made) == []
    assert engine.stats().preemptions


def random_rows(family, count, seed):
    rng = random.Random(seed)
    shared = [[rng.randrange(250) for _ in range(48)] for _ in range(3)]
    for number in range(count):
        length = rng.choice([4, 8, 16])
        prompt = rng.choice(shared)[: rng.randint(1, 40)] + [rng.randrange(250) for _ in range(rng.randint(0, 3))]
        row = {"id": number, "prompt": prompt, "block_length": length, "threshold": round(rng.uniform(0, 0.2), 3)}
        if family is llada2:
            row |= {"gen_length": rng.randint(1, 24), "steps": rng.randint(1, length), "minimal_topk": 1}
            yield row | {"eos_early_stop": True}
        elif family is sdar:
            strategies = ("sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded")
            row |= {"gen_length": rng.randint(1, 24), "steps": rng.randint(1, length)}
            yield row | {"strategy": rng.choice(strategies), "eb_threshold": 15 * rng.random(), "stop_ids": []}
        elif family is nemotron:
            row |= {"gen_length": length * rng.randint(1, 24 // length), "eos": None, "causal_context": True}
            row |= {"mode": rng.choice(("diffusion", "ar", "linear_spec", "canvas")), "adapter": rng.random() < 0.5}
            policy = rng.choice(("confidence_threshold", "low_confidence", "leftmost"))
            yield row | {"policy": policy, "max_steps": rng.randint(1, length)}
        else:
            row |= {"max_new_tokens": rng.randint(length, 24), "small_block": rng.choice([2, 4, length])}
            yield row | {"block_cache": rng.random() < 0.5, "sampler": "generate", "stop_ids": [], "finish": "length"}


class Forgetful(BlockCache):
    """Computes everything up to the open block's end in each step."""

    def plan(self, request):
        request.committed = 0
        return super().plan(request)


def test_random_requests_are_what_they_are_without_a_cache_and_in_the_plain_loop(family, folder, spec, monkeypatch):
    rows = list(random_rows(family, 70, seed=1))
    checkpoint = Checkpoint.load(folder)
    # The seed has no ties that rounding breaks either way.
    made = list(family.through_plain_loop(checkpoint, rows))
    rows = [{**row, **one} for row, one in zip(rows, made, strict=True)]
    submissions = [family.asked(row, str(number)) for number, row in enumerate(rows)]
    wanted = [family.expected(row, spec) for row in rows]
    small = engine_of(folder, max_model_len=96, kv_cache_tokens=96, page_size=8)
    cached = [{"output": one["output"]} for one in together(small, submissions)]
    assert differences(wanted, cached) == []
    assert small.stats().preemptions
    assert small.stats().prompt_tokens_found
    monkeypatch.setitem(CACHES, "block", Forgetful())
    exact = [submission for submission in submissions if submission.diffusion.cache != "sub_block"]
    uncached = engine_of(folder, prefix_caching=False)
    made = together(uncached, exact)
    right = [one for one, asked in zip(wanted, submissions, strict=True) if asked.diffusion.cache != "sub_block"]
    assert differences([{"output": one["output"]} for one in right], made) == []
    assert len(exact) > 30


def conversation(name, prompt, max_tokens=8, **own):
    diffusion = DiffusionParams(unmask="sequential")
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Submission(request_id=name, prompt_ids=prompt, sampling=sampling, diffusion=diffusion, **own)


def test_a_prefix_of_512_tokens_is_computed_once_for_16_requests(sdar_tiny, run):
    prefix = [number % 250 for number in range(512)]
    asked = [conversation(str(number), [*prefix, number, number, 3, 4], max_tokens=4) for number in range(16)]
    engine = engine_of(sdar_tiny)
    answers = run(engine, *asked)
    own = 4 + 4 * 4  # the prompt's last block, and four steps of the next
    assert engine.stats().rows_computed == 512 + 16 * own
    assert sorted(usage.cached_tokens for *_, usage in answers.values()) == [0, *[512] * 15]
    assert engine.stats().prompt_tokens_found == 15 * 512
    assert engine.stats().prompt_tokens_looked_up == 16 * 516
    apart = run(engine_of(sdar_tiny, prefix_caching=False), *asked)
    assert {name: answer[0] for name, answer in apart.items()} == {name: answer[0] for name, answer in answers.items()}


def test_a_second_turn_computes_its_new_tokens_alone(sdar_tiny, run):
    engine = engine_of(sdar_tiny, page_size=4)
    first = list(range(60))
    [(answer, *_)] = run(engine, conversation("first", first, max_tokens=40)).values()
    before = engine.stats().rows_computed
    second = [*first, *answer, 7, 8, 9, 10]
    [(tokens, _, usage)] = run(engine, conversation("second", second, max_tokens=4)).values()
    assert usage.cached_tokens == 96, "all but the answer's last block, which was never computed without masks"
    assert engine.stats().rows_computed - before == len(second) - 96 + 4 * 4
    [(fresh, *_)] = run(engine_of(sdar_tiny), conversation("second", second, max_tokens=4)).values()
    assert tokens == fresh


def test_requests_of_another_salt_share_nothing(sdar_tiny, run):
    prompt = list(range(64))
    asked = [conversation(str(number), prompt, cache_salt=salt) for number, salt in enumerate(("", "a", "b", "a"))]
    engine = engine_of(sdar_tiny)
    found = [run(engine, one)[one.request_id][2].cached_tokens for one in asked]
    assert found == [0, 0, 0, 64]


def test_a_request_at_fault_takes_no_page_from_those_that_share_it(sdar_tiny, run):
    prompt = list(range(64))
    expected = run(engine_of(sdar_tiny), conversation("good", prompt, max_tokens=24))["good"][0]
    engine = engine_of(sdar_tiny)

    def fault(batch):
        bad = find(engine, "bad")
        if bad is None or bad.block.index < 2:
            return None
        return torch.isin(torch.arange(len(batch.ids)), torch.tensor([span_rows(batch, bad)]).flatten())

    def span_rows(batch, request):
        return next(range(span.start, span.stop) for span in batch.layout.spans if span.slots is request.slots)

    engine.runner = FaultyRunner(engine.runner, fault)
    run(engine, conversation("before", prompt, max_tokens=4))
    made = outputs(engine, conversation("bad", prompt, max_tokens=24), conversation("good", prompt, max_tokens=24))
    assert made["bad"][-1].finish_reason == "error"
    assert [token for output in made["good"] for token in output.token_ids] == expected
    assert made["good"][-1].usage.cached_tokens == 64
    again = run(engine, conversation("again", prompt, max_tokens=24))["again"]
    assert again[0] == expected


def test_answers_do_not_depend_on_the_order_of_pages(family, folder, spec, monkeypatch):
    from engine.scheduling.pages import PagePool

    rng, allocate = np.random.default_rng(0), PagePool.allocate

    def shuffled(pool, count, table=()):
        pages = allocate(pool, count, table)
        return pages and tuple(rng.permutation(pages).tolist())

    monkeypatch.setattr(PagePool, "allocate", shuffled)
    rows = rows_of(family, folder)[::3]
    made = together(engine_of(folder, page_size=3), [family.asked(row, str(n)) for n, row in enumerate(rows)])
    assert differences([family.expected(row, spec) for row in rows], made) == []


def test_temperature_and_seed_are_the_requests_own_also_when_it_is_preempted(sdar_tiny, run):
    asked = [conversation(str(number), list(range(9 + number)), max_tokens=48) for number in range(6)]
    asked = [
        replace(one, sampling=replace(one.sampling, temperature=0.9, top_p=0.9, seed=number, presence_penalty=0.5))
        for number, one in enumerate(asked)
    ]
    small, large = engine_of(sdar_tiny, **SMALL), engine_of(sdar_tiny)
    cramped, roomy = run(small, *asked), {name: answer for one in asked for name, answer in run(large, one).items()}
    assert small.stats().preemptions
    assert {name: answer[0] for name, answer in cramped.items()} == {name: answer[0] for name, answer in roomy.items()}


def test_a_block_longer_than_the_context_is_the_context(fast_dllm_tiny, run):
    engine = engine_of(fast_dllm_tiny, max_model_len=5, max_running_requests=1, max_batch_rows=10)
    assert len(run(engine, conversation("short", [1, 2], max_tokens=3))["short"][0]) == 3


def test_of_two_requests_at_fault_that_share_pages_the_last_one_clears_them(sdar_tiny, run):
    engine = engine_of(sdar_tiny, **SMALL)
    engine.runner.pool.values.zero_()
    run(engine, conversation("before", list(range(64)), max_tokens=4))

    def fault(batch):
        spoilt = engine.scheduler.running[0].slots[:64]
        engine.runner.pool.values[:, :, spoilt] = torch.nan
        return torch.ones(len(batch.ids), dtype=torch.bool)

    engine.runner = FaultyRunner(engine.runner, fault)
    made = outputs(engine, *(conversation(name, list(range(64)), max_tokens=4) for name in ("one", "two")))
    assert [ended[-1].finish_reason for ended in made.values()] == ["error", "error"]
    assert not engine.runner.pool.values[:, :, : engine.runner.pool.dump].isnan().any()


def test_a_schedule_has_its_steps_where_logits_are_shifted_too(fast_dllm_tiny, run):
    """The first token of a block comes before the block's first step, from the forward that finishes the one before."""
    one = conversation("r", list(range(8)), max_tokens=32)
    for schedule in ({"unmask": "fixed", "steps": 8}, {"unmask": "low_confidence_static", "denoising_steps": 2}):
        asked = replace(one, diffusion=DiffusionParams(block_length=8, **schedule))
        [(tokens, _, usage)] = run(engine_of(fast_dllm_tiny), asked).values()
        assert len(tokens) == 32
        assert usage.forwards == 4 * (1 + 2), schedule
