"""Blocks of random tokens: DiffusionGemma's rows through the engine, and what a request may ask beside."""

import json
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch

from engine import DiffusionParams, EngineConfig, FinishReason, InvalidRequest, ModelSpec, SamplingParams, Submission
from engine.assemble import assemble
from engine.cache.policies import CACHES
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores
from engine.execution.batch import lay_out, vector_index
from engine.execution.warmup import any_text
from engine.models import describe, new_model
from engine.models.families.diffusion_gemma import Config
from engine.scheduling.checks.submission import check
from engine.unmask.policies import UNMASKS
from engine.unmask.renoise import Renoise
from tests.engine.faulty import outputs
from tests.golden import diffusion_gemma as golden
from tests.golden.rows import differences, read_rows
from tests.golden.through_engine import engine_of, together

SPEC = ModelSpec(
    family="toy",
    vocab_size=50,
    mask_id=None,
    eos_ids=frozenset({48}),
    max_model_len=64,
    attention="block_causal",
    commit="causal",
    block_length=4,
    window=6,
)
MASKED = replace(SPEC, mask_id=49, commit="block", window=None)
CRAMPED = {"max_model_len": 104, "kv_cache_tokens": 104, "page_size": 4}
ROOM_FOR_TWO = {"max_model_len": 72, "kv_cache_tokens": 72, "page_size": 4}


@pytest.fixture(scope="module")
def rows(diffusion_gemma_tiny):
    return [row for row in read_rows(diffusion_gemma_tiny / "generations.json") if golden.takes(row)]


def engine_for(folder, **settings):
    return engine_of(folder, **{"max_model_len": 256, **settings})


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (ROOM_FOR_TWO, 12),
        pytest.param({}, 10**9, marks=pytest.mark.slow),
        pytest.param({"prefix_caching": False, "page_size": 5}, 6, marks=pytest.mark.slow),
        pytest.param(CRAMPED, 24, marks=pytest.mark.slow),
    ],
)
def test_golden_rows_in_one_batch(diffusion_gemma_tiny, rows, settings, most):
    """Published draws, with the engine's hash replaced by theirs."""
    room = settings.get("max_model_len", 256)
    rows = [row for row in rows if row["nfe"] <= most and len(row["prompt"]) + len(row["output"]) <= room]
    engine = engine_for(diffusion_gemma_tiny, **settings)
    with golden.golden_draws():
        made = together(engine, [golden.asked(row, str(number)) for number, row in enumerate(rows)])
    wanted = [golden.expected(row, engine.info.spec) for row in rows]
    if "kv_cache_tokens" in settings:
        assert engine.stats().preemptions
        wanted = [{"output": row["output"]} for row in wanted]  # a request that resumes may take a forward more
    assert differences(wanted, made) == []
    assert engine.stats().kv_pages_used == 0


def test_no_golden_row_comes_out_with_other_draws(diffusion_gemma_tiny, rows):
    """So that the tests above can fail: the engine's own hash decides what is decoded."""
    rows = [row for row in rows if row["nfe"] <= 6]
    engine = engine_for(diffusion_gemma_tiny)
    made = together(engine, [golden.asked(row, str(number)) for number, row in enumerate(rows)])
    assert len(differences([golden.expected(row, engine.info.spec) for row in rows], made)) > len(rows) // 2


def asked(name="r", prompt=tuple(range(3, 30)), max_tokens=32, diffusion=None, **sampling):
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        diffusion=DiffusionParams(unmask="renoise", **{"max_denoising_steps": 5, **(diffusion or {})}),
    )


CROWD = [
    asked("plain"),
    asked("another seed", seed=7),
    asked("stops", stop_ids=frozenset(range(0, 250, 5))),
    asked("edited", logit_bias=((7, 4.0),), bad_words=((9,),), repetition_penalty=1.3, presence_penalty=1.0),
    asked("told", logprobs=2, max_tokens=20),
    asked("a short prompt", prompt=(2,), diffusion={"max_denoising_steps": 2, "entropy_bound": 3.0}),
    asked("a block of its own", diffusion={"block_length": 8}, max_tokens=24),
]


@pytest.fixture(scope="module")
def whole(diffusion_gemma_tiny):
    return outputs(engine_for(diffusion_gemma_tiny), *CROWD)


@pytest.mark.slow
def test_a_request_gets_in_company_what_it_gets_alone(diffusion_gemma_tiny, whole):
    engine = engine_for(diffusion_gemma_tiny)
    for one in CROWD:
        [own] = outputs(engine, one).values()
        assert [(each.token_ids, each.finish_reason) for each in own] == [
            (each.token_ids, each.finish_reason) for each in whole[one.request_id]
        ], one.request_id
        for ours, theirs in zip(own, whole[one.request_id], strict=True):
            for told, there in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
                assert told.logprob == pytest.approx(there.logprob, abs=1e-4)


def test_each_parameter_has_its_effect(whole):
    tokens = {name: [token for each in made for token in each.token_ids] for name, made in whole.items()}
    assert tokens["plain"] != tokens["another seed"]
    assert tokens["plain"] != tokens["edited"]
    assert 9 not in tokens["edited"]
    assert whole["stops"][-1].finish_reason is FinishReason.STOP
    assert whole["stops"][-1].stop_id % 5 == 0
    assert all(len(each.logprobs) == len(each.token_ids) for each in whole["told"])
    assert [len(each.token_ids) for each in whole["plain"]] == [16, 16], "a canvas at a time"
    assert [len(each.token_ids) for each in whole["told"]] == [16, 4], "the last canvas is whole, the answer is not"
    assert [len(each.token_ids) for each in whole["a block of its own"]] == [8, 8, 8]
    assert whole["plain"][-1].usage.forwards <= 10
    assert whole["a short prompt"][-1].usage.forwards <= 4


def test_min_tokens_keep_ends_away(diffusion_gemma_tiny):
    stops = frozenset(range(0, 260, 2))
    free = asked(stop_ids=stops)
    held = replace(free, request_id="held", sampling=replace(free.sampling, min_tokens=10))
    made = outputs(engine_for(diffusion_gemma_tiny), free, held)
    free_length, held_length = (sum(len(each.token_ids) for each in made[name]) for name in ("r", "held"))
    assert free_length < 10 <= held_length


@pytest.mark.slow
def test_requests_share_what_they_begin_with(diffusion_gemma_tiny):
    """Keys and values of the context alone: a canvas is shared once it is an answer that has been read."""
    engine = engine_for(diffusion_gemma_tiny, page_size=8)
    outputs(engine, first := asked("first", max_tokens=48))
    assert engine.stats().prompt_tokens_found == 0
    [again] = outputs(engine, replace(first, request_id="again")).values()
    assert again[-1].usage.cached_tokens == 24, "whole pages of 27 tokens"
    [alone] = outputs(engine_for(diffusion_gemma_tiny, prefix_caching=False), first).values()
    assert [each.token_ids for each in again] == [each.token_ids for each in alone]


def test_a_long_prompt_is_read_in_parts(diffusion_gemma_tiny):
    prompt = tuple(int(token) for token in np.random.default_rng(0).integers(3, 250, 150))
    one = asked(prompt=prompt, max_tokens=16)
    settings = {"max_running_requests": 1, "prefix_caching": False}
    [parts] = outputs(engine_for(diffusion_gemma_tiny, max_batch_rows=40, **settings), one).values()
    [at_once] = outputs(engine_for(diffusion_gemma_tiny, **settings), one).values()
    assert [each.token_ids for each in parts] == [each.token_ids for each in at_once]
    assert parts[-1].usage.forwards > at_once[-1].usage.forwards
    assert parts[-1].usage.rows_computed == at_once[-1].usage.rows_computed


def test_a_trace_tells_each_token_once(diffusion_gemma_tiny):
    engine = engine_for(diffusion_gemma_tiny)
    engine.submit(engine.new_request(replace(asked(logprobs=0), is_traced=True, tells_steps=True)))
    told, steps = [], []
    while engine.request_ids:
        told += engine.step()
        steps += engine.take_traced()
    positions = [position for step in steps for position in step.positions]
    assert positions == list(range(27, 59))
    assert [token for step in steps for token in step.token_ids] == [t for each in told for t in each.token_ids]
    assert len(steps) == told[-1].usage.forwards
    assert engine.stats().decoding.tokens_decoded == 32


@pytest.mark.slow
def test_a_step_that_is_computed_again_gives_the_same(diffusion_gemma_tiny, monkeypatch):
    """What the model remembers of a canvas is not read from where the step writes it."""
    [undisturbed] = outputs(engine_for(diffusion_gemma_tiny), asked()).values()
    engine = engine_for(diffusion_gemma_tiny)
    remember, fails, failures = engine.runner.remember, cycle([False, True]), []

    def fails_behind_its_work(slots, probabilities):
        remember(slots, probabilities)
        if next(fails):
            failures.append(slots)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.runner, "remember", fails_behind_its_work)
    [made] = outputs(engine, asked()).values()
    assert [each.token_ids for each in made] == [each.token_ids for each in undisturbed]
    assert len(failures) >= 2


# ---- the policy alone


def request(step=0, **diffusion):
    submission = Submission(
        request_id="r",
        prompt_ids=[1, 2, 3, 4, 5],
        sampling=SamplingParams(max_tokens=4, seed=3),
        diffusion=DiffusionParams(unmask="renoise", **diffusion),
    )
    made = Request.new(submission, SPEC)
    made.block.step = step
    return made


def scores(made, entropy, tokens=(1, 2, 3, 4), samples=(11, 12, 13, 14)):
    return Scores(
        made.targets, np.array(tokens), np.zeros(4), entropy=np.array(entropy, float), samples=np.array(samples)
    )


def test_blocks_begin_where_the_prompt_ends():
    made = request()
    assert (made.block.start, made.block.end, made.targets.tolist()) == (5, 9, [5, 6, 7, 8])


@pytest.mark.parametrize(
    ("entropy", "bound", "accepted"),
    [
        ([0.75, 0.25, 0.5, 1.0], 0.75, [True, True, True, False]),  # sums before each, ascending: 0, 0.25, 0.75, 1.5
        ([0.75, 0.25, 0.5, 1.0], 0.74, [False, True, True, False]),
        ([9.0, 8.0, 8.5, 9.5], 0.0, [False, True, False, False]),  # the surest is always accepted
        ([0.0, 0.0, 0.0, 0.0], 0.0, [True] * 4),
    ],
)
def test_what_is_accepted_shows_its_sample_and_all_else_a_random_token(entropy, bound, accepted):
    made = request(entropy_bound=bound)
    calls = []

    def numbers(*counters):
        calls.append(counters[:4])
        return np.full(len(counters[4]), 0.5)

    shown = Renoise(numbers).shown(made, scores(made, entropy))
    assert shown.tolist() == [sample if yes else 25 for sample, yes in zip((11, 12, 13, 14), accepted, strict=True)]
    assert calls == [(3, 1, 0, 1)], "seed, stream, block, step"


def test_when_a_block_ends():
    sure, unsure = [0.001] * 4, [0.1] * 4

    def ends(step, entropy, proposed=(1, 2, 3, 4), repeats=0, **diffusion):
        made = request(step, **diffusion)
        made.block.proposed, made.block.repeats = None if proposed is None else np.array(proposed), repeats
        chosen = UNMASKS["renoise"].select(made, scores(made, entropy))
        assert len(set(chosen.tolist())) == 1, "all or none"
        return bool(chosen[0])

    assert ends(1, sure)
    assert not ends(1, unsure)
    assert ends(1, unsure, confidence_threshold=0.2)
    assert not ends(1, sure, proposed=(1, 2, 3, 5)), "the best tokens have changed"
    assert not ends(0, sure, proposed=None), "never in its first step"
    assert ends(0, sure, proposed=None, stability_threshold=0)
    assert not ends(2, sure, stability_threshold=2)
    assert ends(2, sure, repeats=1, stability_threshold=2)
    assert ends(47, unsure), "the last of 48 steps"
    assert not ends(46, unsure)


def test_temperatures_fall_over_a_blocks_steps():
    def temperature(step):
        return UNMASKS["renoise"].needs(request(step, max_denoising_steps=4)).samples.temperature

    assert [temperature(step) for step in range(4)] == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_our_own_numbers_are_uniform_and_of_each_place():
    made = request()
    opened = np.concatenate(
        [UNMASKS["renoise"].opening(replace(made, sampling=SamplingParams(max_tokens=4, seed=s))) for s in range(3000)]
    )
    assert opened.min() == 0
    assert opened.max() == 49
    assert np.bincount(opened).min() > 170, "240 of each token are expected"
    sampled = UNMASKS["renoise"].needs(made).samples.uniform(made.targets)
    assert len(set(sampled.tolist())) == 4
    assert (sampled != UNMASKS["renoise"].needs(request(1)).samples.uniform(made.targets)).all()


def test_what_rows_see_and_carry():
    """Context rows see up to themselves, within the window; a canvas all of itself, and what its first row sees."""
    made = request()
    made.slots = np.arange(16) + 100
    plan = CACHES["block"].plan(made)
    assert plan.rows.tolist() == list(range(9))
    assert plan.horizons.tolist() == [1, 2, 3, 4, 5, 9, 9, 9, 9]
    flat = lay_out([plan], 16, dump=500)
    assert flat.firsts.tolist() == [0] * 9
    assert flat.open_rows.is_open.tolist() == [False] * 5 + [True] * 4
    assert flat.open_rows.read.tolist() == [500] * 9, "nothing before the first step"
    assert flat.open_rows.write.tolist() == [105, 106, 107, 108]
    made.committed, made.block.step = 5, 1
    flat = lay_out([CACHES["block"].plan(made)], 16, dump=500)
    assert flat.open_rows.read.tolist() == [105, 106, 107, 108]
    assert flat.open_rows.write.tolist() == vector_index(np.arange(105, 109), 1, 500).tolist()
    made.ids[5:9], made.masked[5:9] = 7, False
    later = Request.new(
        Submission(
            request_id="later",
            prompt_ids=list(range(12)),
            sampling=SamplingParams(max_tokens=4),
            diffusion=DiffusionParams(unmask="renoise"),
        ),
        SPEC,
    )
    later.slots = np.arange(16)
    flat = lay_out([CACHES["block"].plan(later)], 16, dump=500)
    assert flat.firsts.tolist() == [0] * 6 + [1, 2, 3, 4, 5, 6] + [7] * 4, "six with itself; five before a canvas"


def test_a_prompt_is_cut_at_any_row():
    made = request()
    plan = CACHES["block"].plan(made)
    part = CACHES["block"].cut(plan, 3)
    assert (part.rows.tolist(), part.horizons.tolist(), part.targets.tolist()) == ([0, 1, 2], [1, 2, 3], [])
    assert CACHES["block"].cut(plan, 8).rows.tolist() == [0, 1, 2, 3, 4], "nothing of the canvas"


@pytest.mark.parametrize(
    ("spec", "sampling", "diffusion", "param", "words"),
    [
        (MASKED, {}, {}, "diffusion.unmask", "for models without a mask"),
        (SPEC, {}, {"unmask": "threshold"}, "diffusion.unmask", "fills masks, of which the model has none"),
        (SPEC, {}, {"unmask": "edit"}, "diffusion.unmask", "Policies that fit it: renoise"),
        (SPEC, {}, {"cache": "sub_block"}, "diffusion.cache", "Caches that fit it: block"),
        (SPEC, {}, {"cache": "dual"}, "diffusion.cache", "Caches that fit it: block"),
        (SPEC, {}, {"sub_block_length": 2}, "diffusion.sub_block_length", "anew in each step"),
        (SPEC, {"temperature": 0.7}, {}, "temperature", "diffusion.t_max"),
        (SPEC, {"top_p": 0.9}, {}, "top_p", "diffusion.t_max"),
        (SPEC, {"top_k": 5}, {}, "top_k", "diffusion.t_max"),
        (SPEC, {"min_p": 0.1}, {}, "min_p", "diffusion.t_max"),
        (SPEC, {"bad_words": ((1, 2),)}, {}, "bad_words", "several tokens"),
        (SPEC, {"constraint": any_text(SPEC)}, {}, "diffusion.unmask", "Structured outputs"),
        (SPEC, {}, {"t_min": 0.0}, "diffusion.t_min", "greater than"),
        (SPEC, {}, {"entropy_bound": -1.0}, "diffusion.entropy_bound", "at least"),
        (SPEC, {}, {"max_denoising_steps": 0}, "diffusion.max_denoising_steps", "at least"),
    ],
)
def test_what_it_cannot_be_combined_with(spec, sampling, diffusion, param, words):
    def submission(sampling, diffusion):
        return Submission(
            request_id="r",
            prompt_ids=[1],
            sampling=SamplingParams(max_tokens=4, **sampling),
            diffusion=DiffusionParams(**{"unmask": "renoise", **diffusion}),
        )

    with pytest.raises(InvalidRequest, match=words) as refused:
        check(submission(sampling, diffusion), spec)
    assert refused.value.param == param
    check(submission({}, {}), SPEC)


def test_a_model_without_any_window_has_a_pool_for_the_heads_of_its_layers(diffusion_gemma_tiny, run):
    values = json.loads((diffusion_gemma_tiny / "config.json").read_text())
    values["text_config"]["layer_types"] = ["full_attention"] * 5
    torch.manual_seed(0)
    model = new_model(Config.read(values).geometry, torch.float32, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.normal_(std=0.1)
    spec = replace(describe(diffusion_gemma_tiny).spec, max_model_len=64)
    engine = assemble(EngineConfig(model="m", device="cpu", kv_cache_tokens=128), model, spec, diffusion_gemma_tiny)
    assert engine.runner.pool.keys.shape == (5, 1, 129, 32)
    [(made, reason, _)] = run(engine, asked()).values()
    assert (len(made), reason) == (32, FinishReason.LENGTH)
