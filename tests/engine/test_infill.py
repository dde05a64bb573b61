"""Infilling: masks within a prompt, against the plain loops and beside every other kind of request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import DiffusionParams, EngineConfig, FinishReason, Hole, SamplingParams, Submission, load
from engine.bench.reference import decode, decode_as_dream, factor, threshold
from engine.core.config import ModelSpec
from engine.core.requests.canvas import count_blocks
from engine.core.requests.request import Request
from engine.unmask.dream import dream_schedule
from tests.engine.toys import EACH_POLICY, EVERY_PAIR, FULL_ATTENTION_UNMASKS

MASK = 256


@pytest.fixture(scope="module")
def engines(llada_tiny, dream_tiny):
    return {folder.name.split("-")[0]: load(EngineConfig(model=str(folder))) for folder in (llada_tiny, dream_tiny)}


@st.composite
def canvases(draw):
    """A prompt and its holes, apart from each other; the mask token may be among the prompt's."""
    pieces = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 14)), min_size=1, max_size=4))
    first, last = draw(st.booleans()), draw(st.integers(0, 12))
    length, holes = 0, []
    for known, hole in pieces:
        length += known if holes or first else 0  # else the canvas begins with a hole
        holes.append((length, hole))
    length += last if length else max(last, 1)
    prompt = draw(st.lists(st.integers(0, 259), min_size=length, max_size=length))
    return {"prompt": prompt, "holes": holes, "gen_length": sum(hole for _, hole in holes)}


PLAIN = st.fixed_dictionaries(
    {
        "block_length": st.sampled_from([1, 4, 8, 32]),
        "cache": st.sampled_from(["none", "prefix", "dual"]),
        "unmask": st.sampled_from(["fixed", "threshold", "factor"]),
        "steps": st.none() | st.integers(1, 40),
        "threshold": st.sampled_from([0.05, 0.2, 0.6]),
        "factor": st.sampled_from([0.5, 1.0, 3.0]),
    }
)


def masked_blocks(row):
    """How many masks each block that has any has."""
    is_masked, before = [], 0
    for offset, length in row["holes"]:
        is_masked += [False] * (offset - before if is_masked else 0) + [True] * length
        before = offset
    counts = (sum(is_masked[i : i + row["block_length"]]) for i in range(0, len(is_masked), row["block_length"]))
    return [count for count in counts if count]


def scheduled(row):
    """LLaDA's schedule: the steps over the blocks with masks, a block's masks over its steps, the rest to the first."""
    blocks = masked_blocks(row)
    each, more = divmod(row["steps"] or row["gen_length"], len(blocks))
    opened = iter(enumerate(blocks))
    counts = []

    def rule(confidence, step):
        if step == 0:
            number, masks = next(opened)
            in_block = each + (number < more) if row["steps"] else masks
            share, extra = divmod(masks, in_block)
            counts[:] = [share + (i < extra) for i in range(in_block)]
        best = confidence.argsort(descending=True, stable=True)[: max(counts[step], 1)]
        return confidence.new_zeros(len(confidence)).index_fill(0, best, 1).bool()

    return rule


def plainly(engine, row):
    rule = {"fixed": scheduled(row), "threshold": threshold(row["threshold"]), "factor": factor(row["factor"])}
    keys = ("gen_length", "block_length", "cache", "holes")
    spec = engine.info.spec
    return decode(
        engine.runner.model,
        row["prompt"],
        mask_id=MASK,
        rule=rule[row["unmask"]],
        shift=spec.shift,
        **{key: row[key] for key in keys},
    )


@pytest.mark.parametrize("family", ["llada", "dream"])
@settings(max_examples=6, deadline=None, derandomize=True)  # a near tie is rounding noise: not to be met by chance
@given(data=st.data())
def test_it_fills_as_the_plain_loops_do(engines, submission, run, family, data):
    """Alone or up to four at once, with every cache that has a plain loop; tokens, forwards and rows."""
    engine = engines[family]
    rows = data.draw(st.lists(st.builds(lambda *parts: parts[0] | parts[1], canvases(), PLAIN), min_size=1, max_size=4))
    for row in rows:
        if row["steps"]:
            row["steps"] = max(row["steps"], len(masked_blocks(row)))
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        expected = plainly(engine, row)
        tokens, reason, usage = results[str(number)]
        assert tokens == expected.tokens
        assert (usage.forwards, usage.rows_computed) == (expected.forwards, expected.rows)
        assert reason is FinishReason.LENGTH
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(row["prompt"]), row["gen_length"])


@pytest.mark.parametrize("family", ["llada", "dream"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    row=canvases(),
    steps=st.integers(1, 40),
    alg=st.sampled_from(["entropy", "maskgit_plus", "topk_margin"]),
)
def test_dreams_sampler_fills_as_its_plain_loop_does(engines, submission, run, family, row, steps, alg):
    engine = engines[family]
    if family == "llada":  # its plain loop is for shifted logits: here only that the canvas is one block
        tokens, _, usage = run(engine, submission(cache="none", unmask="dream", steps=steps, alg=alg, **row))["r"]
        assert len(tokens) == row["gen_length"]
        assert usage.forwards == len(dream_schedule(row["gen_length"], steps, 1e-3))
        return
    names = {"prompt_ids": row["prompt"], "gen_length": row["gen_length"], "holes": row["holes"]}
    expected = decode_as_dream(engine.runner.model, steps=steps, alg=alg, mask_id=MASK, **names)
    assert run(engine, submission(cache="none", unmask="dream", steps=steps, alg=alg, **row))["r"][0] == expected.tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(row=canvases(), unmask=st.sampled_from(FULL_ATTENTION_UNMASKS), temperature=st.sampled_from([0.0, 1.0]))
def test_caches_that_recompute_everything_fill_alike(engines, submission, run, family, row, unmask, temperature):
    """A window over the canvas is dual; d2 that chooses every position is none."""
    row |= {"unmask": unmask, "temperature": temperature, "block_length": 8, "threshold": 0.3}
    window = submission("window", cache="window", refresh_before=9999, refresh_after=9999, **row)
    d2 = submission("d2", cache="d2", current_k=9999, rollout_p=1.0, inflate_w=9999, **row)
    dual, none = (submission(cache, cache=cache, **row) for cache in ("dual", "none"))
    answers = run(engines[family], window, d2, dual, none)
    assert answers["window"] == answers["dual"]
    tokens, reason, _ = answers["d2"]
    if unmask not in ("fixed", "threshold", "factor"):  # these others rank by what two kernels may round differently
        assert (len(tokens), reason) == (row["gen_length"], FinishReason.LENGTH)
    else:
        assert tokens == answers["none"][0]


@pytest.mark.parametrize(
    "pairs", [EACH_POLICY, pytest.param(EVERY_PAIR, marks=pytest.mark.slow)], ids=["each", "every"]
)
def test_every_cache_and_policy_in_one_batch_fills_as_alone(engines, submission, run, pairs):
    """Among ordinary requests, which get what they get among themselves; every hole to its last position.

    No page is kept. That ordinary requests in one batch decode as alone is tests/engine/test_engine.py's.
    """
    engine = engines["llada"]
    canvas = {"prompt": list(range(40, 70)), "gen_length": 14}
    three = [(0, 3), (4, 8), (28, 3)]
    asked = [
        submission(
            f"{cache}-{unmask}-{temperature}",
            cache=cache,
            unmask=unmask,
            block_length=8,
            threshold=0.3,
            temperature=temperature,
            stop_ids=frozenset(range(256)),
            holes=holes,
            **canvas,
        )
        for cache, unmask in pairs
        for temperature, holes in ((0.7, three), (0.0, ()))
    ]
    together, apart = run(engine, *asked), run(engine, *(one for one in asked if not one.holes))
    for one in asked:
        tokens, reason, _ = together[one.request_id]
        if one.holes:
            apart |= run(engine, one)
            assert (len(tokens), reason) == (14, FinishReason.LENGTH), "stop tokens end no hole"
            assert MASK not in tokens
        else:
            assert reason is FinishReason.STOP
    assert together == apart
    assert engine.stats().kv_pages_used == 0


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_hole_at_the_end_is_an_ordinary_request(engines, submission, run, family):
    """Of each cache and each policy, all at once."""
    row = {"prompt": list(range(30, 47)), "gen_length": 16, "block_length": 8}
    row |= {"threshold": 0.3, "temperature": 0.5, "steps": 10}
    policies = [{"cache": cache, "unmask": unmask} for cache, unmask in EACH_POLICY]
    holes = run(engines[family], *(submission(i, holes=[(17, 16)], **row, **each) for i, each in enumerate(policies)))
    plain = run(engines[family], *(submission(i, ignore_eos=True, **row, **each) for i, each in enumerate(policies)))
    assert holes == plain


@given(row=canvases(), length=st.integers(1, 40))
def test_blocks_are_counted_as_they_are_cut(row, length):
    holes = tuple(Hole(*hole) for hole in row["holes"])
    asked = Submission(
        request_id="r",
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"]),
        diffusion=DiffusionParams(),
        holes=holes,
    )
    spec = ModelSpec(family="toy", vocab_size=300, mask_id=MASK, eos_ids=frozenset(), max_model_len=200)
    answer = Request.new(asked, spec).answer_positions
    assert count_blocks(answer, int(answer[0]), length) == len(masked_blocks(row | {"block_length": length}))
