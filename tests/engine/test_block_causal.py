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
from tests.golden.rows import covering, differences, read_rows
from tests.golden.through_engine import alone, engine_of, together

EVERY = ("sdar_tiny", "fast_dllm_tiny", "sdar_moe_tiny", "llada2_tiny", "nemotron_tiny")
SLOW = pytest.mark.slow
PAGED = ("sdar_tiny", "fast_dllm_tiny", "nemotron_tiny")
"""One of each way to commit a block: whole, in sub-blocks, causally. Experts know nothing of pages."""
SMALL = {"max_model_len": 256, "kv_cache_tokens": 256, "page_size": 8}
IN_PARTS = {"max_model_len": 256, "max_running_requests": 2, "max_batch_rows": 128, "prefix_caching": False}


def of(*names):
    return pytest.mark.parametrize("folder", names, indirect=True)


@pytest.fixture
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def family(spec):
    return FAMILIES[spec.family]


@pytest.fixture
def spec(folder):
    return describe(folder).spec


def length_of(row):
    """Of its canvas, whatever its blocks."""
    return -(-(len(row["prompt"]) + len(row["output"])) // 64) * 64


def room_for_one(rows, page_size=8):
    longest = max(map(length_of, rows))
    return {"max_model_len": longest, "kv_cache_tokens": -(-longest // page_size) * page_size, "page_size": page_size}


def rows_of(family, folder, most=256):
    rows = [row for row in read_rows(folder / "generations.json") if family.takes(row) and row["output"]]
    return [row for row in rows if length_of(row) <= most]


@pytest.fixture
def few(family, folder):
    return covering(rows_of(family, folder))


@pytest.fixture
def crowd(family, folder, spec):
    """Answers of several blocks, some of which have to give way where there is room for one."""
    return sorted(rows_of(family, folder, most=max(64, 4 * spec.block_length)), key=lambda row: len(row["output"]))[-6:]


def outputs_alone(made):
    """Without forwards, of which a prompt in parts, and a request that resumes, may take more."""
    return [{"output": one["output"]} for one in made]


def batch(engine, family, rows):
    """What the rows come to together, and what they should."""
    made = together(engine, [family.asked(row, str(number)) for number, row in enumerate(rows)])
    assert engine.stats().kv_pages_used == 0
    return made, [family.expected(row, engine.info.spec) for row in rows]


@of(*EVERY)
def test_golden_rows_in_one_batch(family, folder, few):
    made, wanted = batch(engine_of(folder), family, few)
    assert differences(wanted, made) == []
    assert len(few) > 8


@pytest.mark.slow
@of(*EVERY)
def test_all_golden_rows_in_one_batch(family, folder):
    rows = rows_of(family, folder)
    made, wanted = batch(engine_of(folder), family, rows)
    assert differences(wanted, made) == []
    assert len(rows) > 40


@of(*EVERY)
def test_golden_rows_alone(family, folder, few, spec):
    """And without sharing."""
    rows = few[::2]
    engine = engine_of(folder, prefix_caching=False)
    made = alone(engine, [family.asked(row, str(number)) for number, row in enumerate(rows)])
    assert differences([family.expected(row, spec) for row in rows], made) == []


@pytest.mark.slow
@of(*PAGED)
def test_golden_rows_whose_prompts_are_computed_in_parts(family, folder):
    longest = sorted(rows_of(family, folder), key=lambda row: len(row["prompt"]))[-6:]
    # In Fast-dLLM two blocks of 32, and a row before each, of two requests.
    rows = {"max_batch_rows": 136} if family is fast_dllm else {}
    engine = engine_of(folder, **{**IN_PARTS, **rows})
    made, wanted = batch(engine, family, longest)
    assert differences(wanted, outputs_alone(made)) == []
    decoding = engine.stats().decoding
    assert decoding.denoising_steps < decoding.batch_requests.total, "some computed part of a prompt alone"


def among_nan(family, folder, rows):
    """The rows in a pool with room for one, of which all holds NaN that nobody has written."""
    engine = engine_of(folder, **room_for_one(rows))
    for tensor in (engine.runner.pool.keys, engine.runner.pool.values):
        tensor.fill_(torch.nan)
    made, wanted = batch(engine, family, rows)
    assert differences(wanted, outputs_alone(made)) == []
    assert engine.stats().preemptions


@of("fast_dllm_tiny", "nemotron_tiny", pytest.param("sdar_tiny", marks=SLOW), pytest.param("llada2_tiny", marks=SLOW))
def test_what_a_free_page_holds_reaches_nobody(family, folder, crowd):
    among_nan(family, folder, crowd)


@pytest.mark.slow
@of(*PAGED)
def test_what_a_free_page_holds_reaches_nobody_by_torchs_kernels(family, folder, crowd, monkeypatch):
    monkeypatch.setattr(native, "kernel", lambda: None)
    monkeypatch.setattr(proposals, "kernel", lambda: None)
    among_nan(family, folder, crowd)


@pytest.mark.slow
@of(*PAGED, "sdar_moe_tiny")
def test_all_golden_rows_where_there_is_room_for_one(family, folder):
    among_nan(family, folder, rows_of(family, folder))


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


@pytest.mark.parametrize(
    ("folder", "count"),
    [
        ("fast_dllm_tiny", 24),
        *(pytest.param(name, 70, marks=pytest.mark.slow) for name in (*PAGED, "llada2_tiny")),
    ],
    indirect=["folder"],
)
def test_random_requests_are_what_they_are_without_a_cache_and_in_the_plain_loop(
    family, folder, spec, monkeypatch, count
):
    rows = list(random_rows(family, count, seed=5))
    checkpoint = Checkpoint.load(folder)
    # The seed has no ties that rounding breaks either way.
    made = list(family.through_plain_loop(checkpoint, rows))
    rows = [{**row, **one} for row, one in zip(rows, made, strict=True)]
    submissions = [family.asked(row, str(number)) for number, row in enumerate(rows)]
    wanted = [family.expected(row, spec) for row in rows]
    small = engine_of(folder, max_model_len=80, kv_cache_tokens=80, page_size=8)
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
    assert len(exact) > 0.4 * count


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


@pytest.mark.slow
@of(*PAGED)
def test_answers_do_not_depend_on_the_order_of_pages(family, folder, crowd, monkeypatch):
    """Pages of five tokens, which lie across blocks, and too few for all."""
    from engine.scheduling.pages import PagePool

    rng, allocate = np.random.default_rng(0), PagePool.allocate

    def shuffled(pool, count, table=()):
        pages = allocate(pool, count, table)
        return pages and tuple(rng.permutation(pages).tolist())

    monkeypatch.setattr(PagePool, "allocate", shuffled)
    engine = engine_of(folder, **room_for_one(crowd, page_size=5))
    made, wanted = batch(engine, family, crowd)
    assert differences(wanted, outputs_alone(made)) == []
    assert engine.stats().preemptions


def test_temperature_and_seed_are_the_requests_own_also_when_it_is_preempted(sdar_tiny, run):
    asked = [conversation(str(number), list(range(9 + number)), max_tokens=32) for number in range(4)]
    asked = [
        replace(one, sampling=replace(one.sampling, temperature=0.9, top_p=0.9, seed=number, presence_penalty=0.5))
        for number, one in enumerate(asked)
    ]
    small = engine_of(sdar_tiny, max_model_len=64, kv_cache_tokens=64, page_size=8)
    large = engine_of(sdar_tiny)
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
