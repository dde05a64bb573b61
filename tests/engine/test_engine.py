"""The engine as a whole: against the plain loops, under mixed traffic, and what it refuses."""

import random

import pytest

from engine import (
    CapacityError,
    ConfigError,
    ContextLengthExceeded,
    DiffusionParams,
    EngineConfig,
    FinishReason,
    InvalidRequest,
    SamplingParams,
    Submission,
    check_settings,
    load,
)
from engine.bench.reference import decode, factor, fixed, threshold


def random_row(rng, rule):
    block = rng.choice([4, 8, 16])
    return {
        "prompt": [rng.randrange(260) for _ in range(rng.randint(1, 40))],  # the mask token among them
        "gen_length": block * rng.randint(1, 4),
        "block_length": block,
        "cache": rng.choice(["none", "prefix", "dual"]),
        "unmask": rule,
        "threshold": rng.choice([0.05, 0.2, 0.6]),
        "factor": rng.choice([0.5, 1.0, 3.0]),
        "ignore_eos": True,
    }


@pytest.mark.parametrize("count", [16, pytest.param(98, marks=pytest.mark.slow)])
def test_it_decodes_as_the_plain_loops_do(engine, submission, run, count):
    """Random requests, submitted together: prompts of length 1 and prompts that hold the mask token included."""
    rng = random.Random(6)  # no two confidences that rank are closer than rounding, as with 5
    rows = [random_row(rng, rng.choice(["fixed", "threshold", "factor"])) for _ in range(count)]
    rows += [{**random_row(rng, "threshold"), "prompt": [7]}, {**random_row(rng, "fixed"), "prompt": [256, 3, 256]}]
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        rule = {
            "fixed": fixed(row["block_length"], row["block_length"]),
            "threshold": threshold(row["threshold"]),
            "factor": factor(row["factor"]),
        }[row["unmask"]]
        keys = ("gen_length", "block_length", "cache")
        expected = decode(engine.runner.model, row["prompt"], mask_id=256, rule=rule, **{k: row[k] for k in keys})
        tokens, reason, usage = results[str(number)]
        assert tokens == expected.tokens, row
        assert (usage.forwards, usage.rows_computed) == (expected.forwards, expected.rows), row
        assert reason is FinishReason.LENGTH


def test_sampling_is_the_same_alone_and_among_others(engine, submission, run):
    rng = random.Random(6)
    rows = [
        {**random_row(rng, rng.choice(["fixed", "threshold", "random"])), "temperature": rng.choice([0.0, 0.5, 1.3])}
        for _ in range(8)
    ]
    crowd = run(engine, *(submission(n, seed=n, **row) for n, row in enumerate(rows)))
    for number, row in enumerate(rows):
        assert run(engine, submission(number, seed=number, **row))[str(number)] == crowd[str(number)]


def test_a_step_whose_targets_are_scored_in_parts_decodes_the_same(engine, submission, run, monkeypatch):
    rng = random.Random(7)
    rows = [{**random_row(rng, rng.choice(["fixed", "threshold", "entropy"])), "temperature": 0.5} for _ in range(8)]
    whole = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    monkeypatch.setattr("engine.scoring.slices.TARGETS_AT_ONCE", 5)
    assert run(engine, *(submission(number, **row) for number, row in enumerate(rows))) == whole


def test_every_policy_in_one_batch_decodes_as_alone(engine, submission, run):
    """d2, cad, dual and none at four block lengths, arriving one after the other; also what comes out per block."""
    kinds = [
        {"cache": "d2", "unmask": "threshold", "block_length": 16, "current_k": 8},
        {"cache": "d2", "unmask": "certainty", "block_length": 32, "rollout_p": 0.3, "inflate_w": 0},
        {"cache": "dual", "unmask": "cad", "initial_block_length": 12, "max_block_length": 24},
        {"cache": "d2", "unmask": "cad", "confidence_method": "entropy", "min_block_length": 7},
        {"cache": "dual", "unmask": "threshold", "block_length": 8},
        {"cache": "none", "unmask": "entropy_bound", "block_length": 4, "gamma": 2.0},
        {"cache": "none", "unmask": "margin", "block_length": 16},
        {"cache": "prefix", "unmask": "certainty_threshold", "block_length": 8, "temperature": 0.8},
    ]
    rng = random.Random(7)
    rows = [
        {"prompt": [rng.randrange(260) for _ in range(rng.randint(1, 40))], "gen_length": 40, "threshold": 0.3, **kind}
        for kind in kinds
    ]
    alone = {}
    for number, row in enumerate(rows):
        engine.submit(engine.new_request(submission(number, **row)))
        alone[str(number)] = list(until_empty(engine))
    pending, together = list(enumerate(rows)), {name: [] for name in alone}
    while pending or engine.request_ids:
        if pending:
            number, row = pending.pop()
            engine.submit(engine.new_request(submission(number, **row)))
        for output in engine.step():
            together[output.request_id].append(output)
    assert together == alone
    lengths = {len(output.token_ids) for outputs in alone.values() for output in outputs}
    assert len(lengths) > 4, "cad's blocks have lengths of their own"


def until_empty(engine):
    while engine.request_ids:
        yield from engine.step()


def test_seeds_matter_at_a_temperature_and_only_there(engine, submission, run):
    def answers(temperature):
        asked = (submission(seed, seed=seed, temperature=temperature, unmask="fixed") for seed in range(4))
        return {tuple(tokens) for tokens, *_ in run(engine, *asked).values()}

    assert len(answers(1.5)) == 4
    assert len(answers(0.0)) == 1


def test_a_request_that_arrives_later_shares_forwards(engine, submission, run):
    long = submission("long", gen_length=64, unmask="fixed")
    short = submission("short", prompt=[9, 8, 7], gen_length=32, unmask="fixed")
    alone = run(engine, long) | run(engine, short)
    before = engine.stats().forwards
    engine.submit(engine.new_request(long))
    tokens = {"long": [], "short": []}
    for _ in range(10):
        engine.step()
    engine.submit(engine.new_request(short))
    while engine.request_ids:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    assert tokens == {name: result[0] for name, result in alone.items()}
    assert engine.stats().forwards - before == 64, "32 of the 64 were shared"


def test_the_answer_ends_at_a_stop_token(engine, submission, run):
    whole, _, full = run(engine, submission(gen_length=64, unmask="fixed", block_length=16))["r"]
    stop = whole[20]
    tokens, reason, usage = run(
        engine, submission(gen_length=64, unmask="fixed", block_length=16, stop_ids=frozenset({stop}))
    )["r"]
    assert tokens == whole[: whole.index(stop)]
    assert reason is FinishReason.STOP
    assert usage.forwards <= full.forwards / 2, "nothing after its block is computed"


def test_aborting_frees_the_pages(engine, submission):
    for number in range(3):
        engine.submit(engine.new_request(submission(number, gen_length=64)))
    engine.step()
    assert engine.stats().kv_pages_used == 9
    output = engine.abort("1")
    assert (output.finish_reason, output.token_ids) == (FinishReason.ABORT, ())
    assert engine.stats().kv_pages_used == 6
    assert engine.abort("1") is None
    assert sorted(engine.request_ids) == ["0", "2"]


@pytest.mark.parametrize(
    ("row", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [3, 260]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"gen_length": 0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"cache": "lru"}, "diffusion.cache"),
        ({"unmask": "greedy"}, "diffusion.unmask"),
        ({"block_length": 0}, "diffusion.block_length"),
        ({"threshold": 1.5}, "diffusion.threshold"),
        ({"threshold": float("nan")}, "diffusion.threshold"),
        ({"factor": 0.0}, "diffusion.factor"),
        ({"rollout_p": 1.1}, "diffusion.rollout_p"),
        ({"top_k": 2**63}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"sigma": 0.0}, "diffusion.sigma"),
        ({"sigma": 1e-300}, "diffusion.sigma"),
        ({"sigma": 1e300}, "diffusion.sigma"),
        ({"current_k": 0}, "diffusion.current_k"),
        ({"inflate_w": -1}, "diffusion.inflate_w"),
        ({"gamma": -0.1}, "diffusion.gamma"),
        ({"min_block_length": 65}, "diffusion.min_block_length"),
        ({"initial_steps": 91}, "diffusion.initial_steps"),
        ({"max_block_length": 10**400}, "diffusion.max_block_length"),
        ({"initial_block_length": 10**400}, "diffusion.initial_block_length"),
        ({"max_steps": 10**400}, "diffusion.max_steps"),
        ({"confidence_method": "margin"}, "diffusion.confidence_method"),
        ({"factor": float("inf")}, "diffusion.factor"),
        ({"steps": 1, "gen_length": 64, "block_length": 32}, "diffusion.steps"),
    ],
)
def test_bad_requests_name_the_field(engine, submission, row, param):
    with pytest.raises(InvalidRequest) as caught:
        engine.new_request(submission(**row))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("number", "row"),
    [
        ("current_k", {"cache": "d2"}),
        ("inflate_w", {"cache": "d2"}),
        ("refresh_before", {"cache": "window"}),
        ("refresh_after", {"cache": "window"}),
        ("prompt_refresh", {"cache": "window"}),
    ],
)
def test_numbers_that_have_no_upper_bound_are_computed_with(engine, submission, run, number, row):
    asked = submission(gen_length=64, block_length=16, ignore_eos=True, **row, **{number: 10**400})
    tokens, reason, _ = run(engine, asked)["r"]
    assert (len(tokens), reason) == (64, FinishReason.LENGTH)


@pytest.mark.parametrize("unmask", ["cad", "dream"])
def test_a_policy_with_blocks_of_its_own_asks_for_no_other_length(engine, submission, run, unmask):
    expected = run(engine, submission(unmask=unmask))
    assert run(engine, submission(unmask=unmask, block_length=0)) == expected


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "fits"),
    [(992, 32, True), (993, 32, False), (1004, 10, True), (1023, 1, True), (1024, 1, False)],
)
def test_the_context_holds_prompt_and_canvas(engine, submission, prompt_len, max_tokens, fits):
    asked = submission(prompt=[1] * prompt_len, gen_length=max_tokens)
    if fits:
        assert engine.new_request(asked).canvas_end == 1024
    else:
        with pytest.raises(ContextLengthExceeded, match="maximum context length is 1024") as caught:
            engine.new_request(asked)
        assert caught.value.param == ("max_tokens" if prompt_len < 1024 else "prompt")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_model_len": 2048}, ConfigError, "own limit is 1024"),
        ({"max_batch_rows": 1024 + 64 * 32 - 1}, ConfigError, "beside it a block's 32 .* 64: at least 3072"),
        ({"max_model_len": 20, "max_batch_rows": 99, "max_running_requests": 4}, ConfigError, "block's 20 .* 100"),
        ({"kv_cache_tokens": 512}, CapacityError, "lower max_model_len"),
        ({"device": "cuda:7"}, ConfigError, "no CUDA"),
        ({"device": "toaster"}, ConfigError, "must be auto, cpu, cuda"),
        ({"dtype": "int3"}, ConfigError, "dtype is .int3.; it must be one of auto, float32"),
        ({"attention": "flex"}, ConfigError, "attention is .flex.; it must be one of auto, sdpa, triton"),
    ],
)
def test_settings_that_cannot_work(llada_tiny, settings, error, message):
    with pytest.raises(error, match=message):
        load(EngineConfig(model=str(llada_tiny), **settings))


def test_a_kernel_without_windows_is_refused_before_weights_are_loaded(diffusion_gemma_tiny, monkeypatch):
    monkeypatch.setattr("engine.assemble.load_model", None)
    config = EngineConfig(model=str(diffusion_gemma_tiny), device="cpu", attention="triton")
    with pytest.raises(ConfigError, match="attention is 'triton', which has no windows"):
        load(config)
    with pytest.raises(ConfigError, match="attention is 'triton', which has no windows"):
        check_settings(config, DiffusionParams(unmask="renoise"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page_size", 0),
        ("max_running_requests", 0),
        ("num_threads", 0),
        ("memory_fraction", 0.0),
        ("max_model_len", -1),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        EngineConfig(model="x", **{name: value})


def test_a_second_request_with_an_id_is_refused_while_the_first_is_here(engine, submission, run):
    engine.submit(engine.new_request(submission("a")))
    with pytest.raises(InvalidRequest, match="'a' is here already"):
        engine.submit(engine.new_request(submission("a")))
    assert engine.stats().waiting == 1
    assert len(run(engine)["a"][0]) == 32
    engine.submit(engine.new_request(submission("a")))


def test_scattered_pages_give_the_same_tokens(llada_tiny, submission, run):
    """A pool that has become a sieve: no two free pages are neighbours."""
    engine = load(EngineConfig(model=str(llada_tiny), page_size=8, kv_cache_tokens=2048))
    expected = run(engine, submission(gen_length=64))
    pool = engine.scheduler.pool
    held = pool.allocate(pool.num_pages)
    pool.release(held[::2])
    assert run(engine, submission(gen_length=64)) == expected
    assert pool.num_free == pool.num_pages // 2


def test_the_submission_is_plain_data():
    params = {"sampling": SamplingParams(max_tokens=4), "diffusion": DiffusionParams()}
    submission = Submission(request_id="a", prompt_ids=(1, 2), **params)
    with pytest.raises(AttributeError):
        submission.request_id = "b"
