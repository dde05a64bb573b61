"""`kv_budget`: plain loops, other requests, preemption, and slots whose keys and values are gone."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from engine import EngineConfig, InvalidRequest, load
from engine.cache.policies import CACHES

from .eviction_twin import decode_block, decode_full
from .faulty import outputs

FULL = ("dual", "prefix", "window", "delayed")
SCORES = ("rkv", "attention", "recent")


def tokens(engine, *asked):
    return {name: [id_ for one in ends for id_ in one.token_ids] for name, ends in outputs(engine, *asked).items()}


def prompt_of(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(5, 250) for _ in range(length)]


@pytest.mark.parametrize(
    ("family", "score"),
    [
        ("dream_tiny", "rkv"),
        *(pytest.param("dream_tiny", score, marks=pytest.mark.slow) for score in SCORES if score != "rkv"),
        pytest.param("llada_tiny", "rkv", marks=pytest.mark.slow),
    ],
)
def test_a_plain_loop_that_attends_in_both_directions(request, submission, family, score):
    engine = load(EngineConfig(model=str(request.getfixturevalue(family)), page_size=5))
    for seed, length in enumerate((37, 60)):
        prompt = prompt_of(length, seed)
        row = {"gen_length": 32, "block_length": 8, "threshold": 0.3, "ignore_eos": True, "lookahead": None}
        eviction = {"kv_budget": 24, "kv_score": score, "kv_lambda": 0.3, "kv_sink": 2}
        [ours] = tokens(engine, submission("one", prompt=prompt, cache="dual", **row, **eviction)).values()
        weight = {"rkv": 0.3, "attention": 1.0}.get(score)
        expected = decode_full(
            engine.runner.model,
            engine.info.spec,
            prompt,
            gen_length=32,
            block_length=8,
            threshold=0.3,
            budget=24,
            score=score,
            weight=weight,
            sink=2,
        )
        assert ours == expected
        [whole] = tokens(engine, submission("all", prompt=prompt, cache="dual", **row)).values()
        assert whole != expected, "an eviction that changes nothing shows nothing here"


@pytest.mark.parametrize(("family", "score"), [*product(["sdar_tiny"], SCORES), ("llada2_tiny", "rkv")])
def test_a_plain_loop_block_by_block(request, submission, family, score):
    """Prompts that are longer than budget and buffer are evicted while they are read."""
    engine = load(EngineConfig(model=str(request.getfixturevalue(family)), page_size=5))
    length = engine.info.spec.block_length
    budget, buffer = length + 16, length + 3
    strict = np.nextafter(0.3, 1) if engine.info.spec.strict_threshold else 0.3
    for seed, size in enumerate((9, 60)):
        prompt = prompt_of(size, seed)
        row = {"gen_length": 24, "threshold": 0.3, "ignore_eos": True, "cache": "block"}
        eviction = {"kv_budget": budget, "kv_buffer": buffer, "kv_score": score, "kv_lambda": 0.3, "kv_sink": 2}
        asked = submission("one", prompt=prompt, **row, **eviction)
        [ends] = outputs(engine, asked).values()
        expected, most = decode_block(
            engine.runner.model,
            engine.info.spec,
            prompt,
            gen_length=24,
            length=length,
            threshold=strict,
            budget=budget,
            buffer=buffer,
            score=score,
            weight={"rkv": 0.3, "attention": 1.0}.get(score),
            sink=2,
        )
        assert [id_ for one in ends for id_ in one.token_ids] == expected
        usage = ends[-1].usage
        assert usage.kv_resident_peak <= budget + buffer + length
        assert most == usage.kv_resident_peak
        assert usage.kv_evicted > 0 or size < budget
        [whole] = tokens(engine, submission("all", prompt=prompt, **row)).values()
        assert whole != expected or size < budget


@pytest.mark.parametrize("cache", [name for name, policy in CACHES.items() if policy.allows_eviction])
def test_a_budget_that_holds_everything_changes_nothing(request, submission, cache):
    full = CACHES[cache].attention == "full"
    engine = load(EngineConfig(model=str(request.getfixturevalue("dream_tiny" if full else "fast_dllm_tiny"))))
    row = {"prompt": prompt_of(41), "gen_length": 48, "cache": cache, "threshold": 0.3, "ignore_eos": True}
    row |= {"block_length": 8} if full else {}
    [plain] = outputs(engine, submission("one", **row)).values()
    [ours] = outputs(engine, submission("one", **row, kv_budget=96)).values()
    assert [replace(one, usage=replace(one.usage, kv_resident_peak=0)) for one in ours] == plain
    assert ours[-1].usage.kv_evicted == 0


def crowd(submission, spec):
    """Requests of each policy, with budgets and without."""
    caches = FULL if not spec.is_block_causal else ("block", "sub_block")
    rng = random.Random(3)
    asked = []
    for number in range(9):
        eviction = {
            "kv_budget": rng.choice([40, 48, 64]),
            "kv_buffer": rng.choice([32, 40, 61]),
            "kv_score": rng.choice([*SCORES, "random"]),
            "kv_sink": rng.choice([0, 4]),
        }
        row = {
            "prompt": prompt_of(rng.choice([5, 30, 90]), number),
            "gen_length": 32,
            "cache": caches[number % len(caches)],
            "threshold": 0.3,
            "temperature": rng.choice([0.0, 0.7]),
            "ignore_eos": True,
        }
        asked.append(submission(f"{number}", **row, **(eviction if number % 4 else {})))
    return asked


@pytest.fixture(params=["dream_tiny", "sdar_tiny", "fast_dllm_tiny"])
def folder(request):
    return request.getfixturevalue(request.param)


SETTINGS = {"page_size": 5, "max_model_len": 128, "max_batch_rows": 640, "max_running_requests": 8}


@pytest.mark.slow
def test_each_request_gets_in_company_what_it_gets_alone(folder, submission):
    """In a pool that is too small for all: block-causal requests give way, and read again what they had read."""
    kv_dtype = "int8" if folder.name == "sdar-tiny" else "auto"
    small = {"kv_cache_tokens": 256, **SETTINGS}
    engine = load(EngineConfig(model=str(folder), kv_dtype=kv_dtype, **small))
    asked = crowd(submission, engine.info.spec)
    alone = {}
    for one in asked:
        alone |= tokens(engine, one)
    assert tokens(engine, *reversed(asked)) == alone
    assert engine.stats().preemptions > 0 or not engine.info.spec.is_block_causal
    assert engine.stats().kv_pages_used == 0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 40])
def test_what_is_left_of_a_budget_of_rows_takes_a_part_of_a_plan(sdar_tiny, submission, rows):
    """Such a part may end where an eviction is due, with the open block left out."""
    engine = load(EngineConfig(model=str(sdar_tiny), kv_cache_tokens=1024, **SETTINGS))
    row = {"gen_length": 16, "threshold": 0.3, "ignore_eos": True, "cache": "block", "kv_budget": 16, "kv_buffer": 8}
    asked = [submission(f"{n}", prompt=prompt_of(40 + 7 * n, n), **row) for n in range(4)]
    alone = {}
    for one in asked:
        alone |= tokens(engine, one)
    engine.scheduler.lower_budget(2 * rows)
    assert tokens(engine, *asked) == alone


def test_what_is_evicted_is_read_by_nobody(folder, submission):
    """After each step, slots are NaN that no request has a position in."""
    engine = load(EngineConfig(model=str(folder), kv_cache_tokens=1024, **SETTINGS))
    asked = crowd(submission, engine.info.spec)
    expected = tokens(engine, *asked)
    pool, spoilt = engine.runner.pool, 0
    for one in asked:
        engine.submit(engine.new_request(one))
    got = {one.request_id: [] for one in asked}
    while engine.request_ids:
        for output in engine.step():
            got[output.request_id] += output.token_ids
        held = [
            request.slots[: request.num_kept_before(request.block.visible_end)] for request in engine.scheduler.running
        ]
        dead = np.setdiff1d(np.arange(pool.dump), np.concatenate([np.empty(0, np.int64), *held]))
        kept = {page for request in engine.scheduler.running for page in request.pages}
        dead = dead[[slot // 5 not in engine.scheduler.pool._key_of for slot in dead]]
        pool.keys[:, :, dead], pool.values[:, :, dead] = torch.nan, torch.nan
        spoilt += sum(slot // 5 in kept for slot in dead)
    assert got == expected
    assert spoilt > 0


@pytest.mark.slow
def test_a_quarter_of_the_memory_is_room_for_more_than_twice_as_many(sdar_tiny, submission):
    """Requests of a block-causal model whose budget, buffer and block are a fourth of their canvas."""
    settings = {"page_size": 4, "kv_cache_tokens": 256, "max_model_len": 128, "max_running_requests": 32}
    row = {"prompt": prompt_of(100), "gen_length": 20, "threshold": 0.3, "ignore_eos": True, "cache": "block"}
    most = {}
    for budget in (None, 16):
        engine = load(EngineConfig(model=str(sdar_tiny), prefix_caching=False, **settings))
        for number in range(12):
            asked = submission(f"{number}", **row, kv_budget=budget, kv_buffer=10)
            engine.submit(engine.new_request(asked))
        most[budget] = 0
        while engine.request_ids:
            engine.step()
            most[budget] = max(most[budget], engine.stats().running)
    assert most[16] >= 2 * most[None] > 0


@pytest.mark.parametrize(
    ("family", "asked", "param"),
    [
        ("llada_tiny", {"cache": "none"}, "diffusion.kv_budget"),
        ("llada_tiny", {"cache": "d2"}, "diffusion.kv_budget"),
        ("llada_tiny", {"kv_budget": 15}, "diffusion.kv_budget"),
        ("llada_tiny", {"kv_lambda": 1.5}, "diffusion.kv_lambda"),
        ("llada_tiny", {"kv_sink": 33}, "diffusion.kv_sink"),
        ("dream_tiny", {"kv_sink": 32}, "diffusion.kv_sink"),
        ("sdar_tiny", {"kv_sink": 29}, "diffusion.kv_sink"),
        ("llada_tiny", {"kv_score": "age"}, "diffusion.kv_score"),
        ("llada2_tiny", {"kv_budget": 40, "kv_buffer": 31}, "diffusion.kv_buffer"),
        ("llada2_tiny", {"kv_budget": 16}, "diffusion.kv_budget"),
        ("nemotron_tiny", {}, "diffusion.kv_budget"),
        ("diffusion_gemma_tiny", {"unmask": "renoise"}, "diffusion.kv_budget"),
    ],
)
def test_what_it_cannot_be_combined_with(request, submission, family, asked, param):
    engine = load(EngineConfig(model=str(request.getfixturevalue(family))))
    with pytest.raises(InvalidRequest) as refused:
        engine.new_request(submission("one", **{"cache": "auto", "kv_budget": 32, **asked}))
    assert refused.value.param == param
