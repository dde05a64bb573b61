"""Infilling: masks within a prompt, against the plain loops, beside every other kind of request, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import (
    ContextLengthExceeded,
    DiffusionParams,
    EngineConfig,
    FinishReason,
    Hole,
    InvalidRequest,
    SamplingParams,
    Submission,
    load,
)
from engine.cache import CACHES
from engine.checks import check
from engine.config import ModelSpec
from engine.dream_sampler import dream_schedule
from engine.plan import Scores
from engine.reference import decode, decode_as_dream, factor, threshold
from engine.request import Request, count_blocks
from engine.unmask import UNMASKS

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
@settings(max_examples=30, deadline=None, derandomize=True)  # a near tie is rounding noise: not to be met by chance
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
@settings(max_examples=20, deadline=None, derandomize=True)
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


@pytest.mark.parametrize("family", ["llada", "dream"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(row=canvases(), unmask=st.sampled_from(sorted(UNMASKS)), temperature=st.sampled_from([0.0, 1.0]))
def test_caches_that_recompute_everything_fill_alike(engines, submission, run, family, row, unmask, temperature):
    """A window over the canvas is dual; d2 that chooses every position is none."""
    row |= {"unmask": unmask, "temperature": temperature, "block_length": 8, "threshold": 0.3}
    window = submission("window", cache="window", refresh_before=9999, refresh_after=9999, **row)
    d2 = submission("d2", cache="d2", current_k=9999, rollout_p=1.0, inflate_w=9999, **row)
    answers = run(engines[family], window, d2, submission("dual", cache="dual", **row))
    assert answers["window"] == answers["dual"]
    tokens, reason, _ = answers["d2"]
    if unmask not in ("fixed", "threshold", "factor"):  # these others rank by what two kernels may round differently
        assert (len(tokens), reason) == (row["gen_length"], FinishReason.LENGTH)
    else:
        assert tokens == run(engines[family], submission("none", cache="none", **row))["none"][0]


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", sorted(CACHES))
def test_every_cache_and_policy_in_one_batch_fills_as_alone(engines, submission, run, family, cache):
    """Among ordinary requests; every hole to its last position, and no page is kept."""
    engine = engines[family]
    canvas = {"prompt": list(range(40, 70)), "gen_length": 24, "cache": cache}
    three = [(0, 5), (4, 10), (28, 9)]
    asked = [
        submission(
            f"{unmask}-{temperature}-{len(holes)}",
            unmask=unmask,
            block_length=8,
            threshold=0.3,
            temperature=temperature,
            stop_ids=frozenset(range(256)),
            holes=holes,
            **canvas,
        )
        for unmask in UNMASKS
        for temperature, holes in ((0.7, three), (0.0, ()))
    ]
    together = run(engine, *asked)
    for one in asked:
        tokens, reason, _ = together[one.request_id]
        assert run(engine, one) == {one.request_id: together[one.request_id]}
        if one.holes:
            assert (len(tokens), reason) == (24, FinishReason.LENGTH), "stop tokens end no hole"
            assert MASK not in tokens
        else:
            assert reason is FinishReason.STOP
    assert engine.stats().kv_pages_used == 0


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", sorted(CACHES))
@pytest.mark.parametrize("unmask", sorted(UNMASKS))
def test_a_hole_at_the_end_is_an_ordinary_request(engines, submission, run, family, cache, unmask):
    row = {"prompt": list(range(30, 47)), "gen_length": 32, "block_length": 8, "cache": cache, "unmask": unmask}
    row |= {"threshold": 0.3, "temperature": 0.5, "steps": 20}
    hole = run(engines[family], submission(holes=[(17, 32)], **row))
    assert hole == run(engines[family], submission(ignore_eos=True, **row))


def opened(row, **diffusion):
    spec = ModelSpec(family="toy", vocab_size=300, mask_id=MASK, eos_ids=frozenset({3}), max_model_len=200)
    return Request.new(
        Submission(
            request_id="r",
            prompt_ids=[1] * 60,
            sampling=SamplingParams(max_tokens=sum(length for _, length in row)),
            diffusion=DiffusionParams(block_length=8, **diffusion),
            holes=tuple(Hole(*hole) for hole in row),
        ),
        spec,
    )


def test_blocks_without_masks_are_neither_opened_nor_given_steps(engines, submission):
    """Masks at 10..14 and 50..57 of 70: blocks of 8 begin at 10, so those at 18, 26, 34 and 42 have none."""
    engine = engines["llada"]
    holes = [(10, 5), (45, 8)]
    asked = submission(prompt=[7] * 57, holes=holes, gen_length=13, block_length=8, unmask="fixed", steps=4)
    request = engine.new_request(asked)
    assert (request.end, request.answer_start, request.answer_end, request.num_blocks) == (70, 10, 58, 2)
    engine.submit(request)
    blocks, outputs = [], []
    while engine.request_ids:
        blocks.append((request.block.index, request.block.start, request.block.end, request.block.num_masked))
        outputs += engine.step()
    assert blocks == [(0, 10, 18, 5)] * 2 + [(1, 50, 58, 8)] * 2, "four steps over two blocks"
    assert [len(output.token_ids) for output in outputs] == [5, 8]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.LENGTH]
    canvas = request.ids.tolist()
    assert canvas[10:15] + canvas[50:58] == [token for output in outputs for token in output.token_ids]
    assert canvas[:10] + canvas[15:50] + canvas[58:] == [7] * 57, "what was there stays"


def test_window_reaches_back_over_blocks_that_were_skipped():
    """The last tokens of the block before have no keys and values yet, however far away they are."""
    request = opened([(10, 3), (52, 8)], refresh_before=2, refresh_after=4)
    request.masked[10:13] = False
    request.history.decoded = request.answer[1:3]
    request.block = replace(request.block, index=1, start=50, end=58)
    rows = CACHES["window"].plan(request).rows.tolist()
    assert rows == [11, 12, *range(48, 62)]


def test_certainty_sees_what_is_known_behind_a_hole():
    """Of equally confident positions the outer ones are certain, the right one as the left one."""
    request = opened([(20, 8)], unmask="certainty", sigma=2.0, steps=4)
    scores = Scores(request.targets, np.full(8, 5), np.zeros(8))
    assert np.flatnonzero(UNMASKS["certainty"].select(request, scores)).tolist() == [0, 7]
    rows = CACHES["d2"].plan(after_a_step(request, current_k=2)).targets.tolist()
    assert rows == [20, 27], "d2 ranks by the same density"


def after_a_step(request, current_k):
    """The same request after a step that found all masks alike."""
    request.diffusion = replace(request.diffusion, current_k=current_k, rollout_p=0.0, inflate_w=0, sigma=2.0)
    request.forwards = 1
    request.history.confidence[request.answer] = 0.5
    request.history.importance[0] = 1.0
    return request


def test_cad_measures_its_progress_by_what_there_is_to_fill():
    """Four fifths through a hole are four fifths, however much of the prompt comes behind it."""
    sizes = []
    for offset in (10, 60):
        request = opened([(offset, 50)], unmask="cad")
        request.block = replace(request.block, start=offset + 40, end=offset + 50)
        sizes.append(UNMASKS["cad"].needs(request).vocabulary)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("prompt", "holes", "max_tokens", "message"),
    [
        ([1, 2], [(0, 0)], 1, "at least 1"),
        ([1, 2], [(1, -4)], 4, "at least 1"),
        ([1, 2], [(-1, 4)], 4, "in order"),
        ([1, 2], [(3, 4)], 4, "the prompt, which has 2"),
        ([1, 2], [(1, 4), (1, 4)], 8, "at least one token between"),
        ([1, 2], [(2, 4), (1, 4)], 8, "in order"),
        ([1, 2], [(1, 4)], 5, "max_tokens is 5"),
        ([], [(0, 4)], 4, "empty"),
    ],
)
@pytest.mark.parametrize("unmask", ["threshold", "dream"])
def test_holes_that_cannot_be(engines, submission, prompt, holes, max_tokens, message, unmask):
    asked = submission(prompt=prompt, holes=holes, gen_length=max_tokens, unmask=unmask)
    with pytest.raises(InvalidRequest, match=message) as caught:
        engines["llada"].new_request(asked)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(("length", "fits"), [(24, True), (25, False), (10**15, False)])
def test_the_context_holds_prompt_and_holes(engines, submission, length, fits):
    asked = submission(prompt=[1] * 1000, holes=[(3, length)], gen_length=length, steps=1, block_length=32)
    if fits:
        assert engines["llada"].new_request(asked).end == 1024
    else:
        with pytest.raises(ContextLengthExceeded, match="1000 in the prompt") as caught:
            engines["llada"].new_request(asked)
        assert caught.value.param == "prompt"


def test_steps_are_at_least_as_many_as_blocks_with_masks(engines, submission):
    row = {"prompt": [1] * 50, "holes": [(0, 1), (40, 1)], "gen_length": 2, "block_length": 8}
    assert engines["llada"].new_request(submission(steps=2, **row)).num_blocks == 2
    with pytest.raises(InvalidRequest, match="2 blocks") as caught:
        engines["llada"].new_request(submission(steps=1, **row))
    assert caught.value.param == "diffusion.steps"


def test_a_block_causal_model_says_why_not():
    spec = ModelSpec(
        family="sdar", vocab_size=300, mask_id=MASK, eos_ids=frozenset(), max_model_len=200, bidirectional=False
    )
    asked = Submission(
        request_id="r",
        prompt_ids=[1, 2],
        sampling=SamplingParams(max_tokens=4),
        diffusion=DiffusionParams(block_length=4),
        holes=(Hole(1, 4),),
    )
    with pytest.raises(InvalidRequest, match="block-causal") as caught:
        check(asked, spec, 200)
    assert caught.value.param == "prompt"
    check(replace(asked, holes=()), spec, 200)


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
    answer = Request.new(asked, spec).answer
    assert count_blocks(answer, length) == len(masked_blocks(row | {"block_length": length}))
