"""Whole steps on a CUDA device that is not there: devices, dtypes, waits, copies and launches, without a GPU."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.roofline.operators import MOE_LAUNCHES, QK_NORM_LAUNCHES
from engine.execution.graphs import Replay
from engine.kernels.attention import attend_spans
from engine.kernels.kv.formats import stored_dtype
from engine.kernels.transfer import to_device
from engine.models import weight_bytes
from engine.models.adapter import AdapterConfig
from engine.models.experts import BlockRouting, MoEConfig
from engine.models.quantised.layers import Quantiser, quantised_weights
from engine.models.quantised.schemes import SCHEMES, check_quantization
from engine.models.rotary import QueryScaling
from engine.models.sandwich import SandwichConfig
from engine.scoring import sampling
from engine.scoring.slices import Rows
from tests.engine.eager_graphs import rerun
from tests.engine.fake_cuda import CUDA, fake_cuda, launched_at_once, paged_kernel
from tests.engine.test_waits import EDITS, everything
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS, FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS, TOY, TOY_MOE

LLADA = replace(TOY, vocab_size=2000, max_positions=2048)
DREAM = replace(LLADA, num_kv_heads=2, qkv_bias=True)
LAYERS = (2, 4)
SPEC = ModelSpec(family="fake", vocab_size=2000, mask_id=1999, eos_ids=frozenset({1998}), max_model_len=2048)
ONCE = {"to the device": 1, "to the host": 1}


@pytest.fixture
def cuda(monkeypatch):
    with fake_cuda(monkeypatch) as fake:
        yield fake


def steps_of(engine, cuda, count):
    """So many steps, none of which waits for the device more than once, or fails anybody."""
    for _ in range(count):
        with cuda.step() as (waits, _):
            outputs = engine.step()
        assert not waits
        assert cuda.copies == ONCE
        assert not [output for output in outputs if output.finish_reason == "error"]


@pytest.mark.parametrize(
    ("geometry", "shift", "kernel", "stride"),
    [
        (LLADA, 0, paged_kernel, 5),
        (DREAM, 1, attend_spans, 5),
        pytest.param(DREAM, 1, paged_kernel, 1, marks=pytest.mark.slow),
    ],
)
def test_steps_of_every_policy_and_edit(cuda, submission, geometry, shift, kernel, stride):
    """In slow tests each cache with each unmask policy, else each of both."""
    some = list(everything(submission, stride))
    assert {one.diffusion.cache for one in some} == {*FULL_ATTENTION_CACHES}
    assert {one.diffusion.unmask for one in some} == {*FULL_ATTENTION_UNMASKS}
    assert len(some) >= len(EDITS)
    asked = [*some, submission("holes", prompt=[5] * 30, holes=[(2, 9), (7, 7)], gen_length=16)]
    engine = cuda.engine(geometry, replace(SPEC, shift=shift, max_model_len=128), requests=100, kernel=kernel)
    for one in asked:
        engine.submit(engine.new_request(one))
    steps_of(engine, cuda, 2)


@pytest.mark.parametrize("half", [0, 1])
def test_small_steps_of_every_unmask_policy_and_edit_through_graphs(cuda, submission, monkeypatch, half):
    replays, run = [], Replay.run
    monkeypatch.setattr(Replay, "run", lambda replay: replays.append(replay) or run(replay))
    spec = replace(SPEC, max_model_len=128)
    engine = cuda.engine(DREAM, replace(spec, shift=1), requests=20, kernel=paged_kernel, capture=rerun)
    for one in [one for one in everything(submission) if one.diffusion.cache == "window"][half::2]:
        engine.submit(engine.new_request(one))
    for done in range(1, 3):
        with cuda.step() as (waits, _):
            outputs = engine.step()
        assert len(replays) == done
        assert not waits
        assert cuda.copies == ONCE
        assert not [output for output in outputs if output.finish_reason == "error"]


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "capture"), [(0, None), (1, rerun)])
def test_steps_of_block_causal_models_with_and_without_targets(cuda, shift, capture):
    """Prompts in parts, finished blocks, first tokens from the row before the block, sub-blocks, every policy."""
    spec = replace(SPEC, max_model_len=128, shift=shift, attention="block_causal", block_length=8)
    engine = cuda.engine(replace(DREAM, qk_norm=True), spec, requests=40, kernel=paged_kernel, capture=capture)
    engine.scheduler.max_batch_rows = 350
    fitting = BLOCK_CAUSAL_UNMASKS
    for number, (unmask, cache) in enumerate(product(fitting, ["block", "sub_block"])):
        own = SamplingParams(max_tokens=24, temperature=0.8 * (number % 3 == 0), ignore_eos=True)
        diffusion = DiffusionParams(cache=cache, unmask=unmask, sub_block_length=4)
        prompt = [5 + number] * (32 + number % 9)
        asked = Submission(request_id=str(number), prompt_ids=prompt, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
    steps_of(engine, cuda, 5)
    stats = engine.stats().decoding
    assert 0 < stats.denoising_steps < stats.batch_requests.total, "some computed part of a prompt alone"


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kv_dtype"), [((8, 0), "auto"), ((9, 0), "int8"), ((9, 0), "fp8")])
def test_steps_of_a_noised_block_behind_prompts_in_parts(cuda, monkeypatch, capability, kv_dtype):
    """Windows, heads of two sizes, rows that carry vectors, samples, and rows of which each sees something else."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    sandwich = SandwichConfig(
        window=20,
        full_layers=frozenset({1}),
        full_kv_heads=1,
        full_head_dim=64,
        full_rope_theta=1e6,
        full_rotated_pairs=8,
        softcap=30.0,
    )
    moe = MoEConfig(num_experts=4, experts_per_token=2, ff_dim=32, activation="gelu_tanh", router_norm_eps=1e-6)
    geometry = replace(LLADA, num_kv_heads=2, tied_head=True, moe=moe, sandwich=sandwich)
    spec = replace(
        SPEC, mask_id=None, max_model_len=128, attention="block_causal", commit="causal", block_length=16, window=20
    )
    engine = cuda.engine(geometry, spec, stored=stored_dtype(kv_dtype, torch.bfloat16), requests=20)
    engine.scheduler.max_batch_rows = 60
    for number in range(3):
        own = SamplingParams(max_tokens=24, seed=number, ignore_eos=True, logprobs=2 if number % 2 else None)
        diffusion = DiffusionParams(unmask="renoise", max_denoising_steps=1)
        prompt = [5 + number] * (22 + number)
        asked = Submission(request_id=str(number), prompt_ids=prompt, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
    steps_of(engine, cuda, 4)
    assert engine.stats().decoding.blocks


@pytest.mark.slow
@pytest.mark.parametrize("capture", [None, rerun])
def test_steps_that_replace_tokens_with_every_edit(cuda, capture):
    """Tokens that stand at targets have edits of their own."""
    spec = replace(SPEC, max_model_len=128, attention="block_causal", block_length=8)
    engine = cuda.engine(LLADA, spec, requests=40, kernel=paged_kernel, capture=capture)
    edits = [edit for edit in EDITS if all(len(word) == 1 for word in edit.get("bad_words", ()))]
    assert len(edits) > 5
    for number, edit in enumerate(edits):
        own = SamplingParams(max_tokens=24, ignore_eos=True, seed=number, **edit)
        diffusion = DiffusionParams(unmask="edit", threshold=1.0, editing_threshold=0.0)
        asked = Submission(request_id=str(number), prompt_ids=[5 + number] * 13, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
    steps_of(engine, cuda, 4)
    assert engine.stats().decoding.tokens_edited > len(edits)


@pytest.mark.slow
@pytest.mark.parametrize("capture", [None, rerun])
def test_steps_that_move_tokens_of_rows_that_are_routed_by_blocks(cuda, monkeypatch, capture):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    spec = replace(SPEC, max_model_len=128, attention="block_causal", block_length=16, routing_block=8)
    routed = replace(TOY_MOE, block_routing=BlockRouting(8, 9))
    spec = replace(spec, delete_id=spec.vocab_size - 3, split_id=spec.vocab_size - 4)
    engine = cuda.engine(replace(LLADA, moe=routed), spec, kernel=paged_kernel, capture=capture)
    for number in range(4):
        own = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2 * (number % 2) or None)
        diffusion = DiffusionParams(unmask="insert_delete" if number else "edit", threshold=1.0, editing_threshold=0.0)
        asked = Submission(request_id=str(number), prompt_ids=[5 + number] * 13, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
    steps_of(engine, cuda, 4)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_steps_that_evict(cuda, attention):
    """They copy once more: where what stays moves to."""
    grid = {"attention": attention, "block_length": 8} if attention == "block_causal" else {}
    spec = replace(SPEC, max_model_len=128, **grid)
    engine = cuda.engine(LLADA, spec, kernel=paged_kernel, capture=rerun)
    for number, score in enumerate(("rkv", "attention", "recent", "random")):
        own = SamplingParams(max_tokens=32, ignore_eos=True)
        diffusion = DiffusionParams(block_length=8, kv_budget=24, kv_buffer=8, kv_score=score, threshold=0.0)
        asked = Submission(request_id=score, prompt_ids=[5 + number] * 50, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
    for _ in range(4):
        with cuda.step() as (waits, _):
            outputs = engine.step()
        assert not waits
        assert cuda.copies in (ONCE, {**ONCE, "to the device": 2})
        assert not [output for output in outputs if output.finish_reason == "error"]
    assert engine.stats().kv_evictions >= 8


def test_a_step_that_takes_over_what_an_answer_left(cuda):
    engine = cuda.engine(LLADA, replace(SPEC, max_model_len=128), kernel=paged_kernel, relay_tokens=512)
    text = list(range(5, 45))
    for name, prompt, sources in (("source", text, ()), ("taker", [7, 8, 9, *text, *text[:20]], ("source",))):
        asked = Submission(
            request_id=name,
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=8, ignore_eos=True),
            diffusion=DiffusionParams(block_length=8, threshold=0.0),
            relay_as=name,
            relay_from=sources,
        )
        engine.submit(engine.new_request(asked))
        while engine.has_work:
            with cuda.step() as (waits, _):
                engine.step()
            assert not waits
            assert cuda.copies["to the host"] == 1
    assert engine.stats().relay_tokens["adopted"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("capture", [None, rerun])
def test_steps_that_draft_through_an_adapter_beside_steps_that_verify(cuda, capture):
    spec = replace(SPEC, max_model_len=128, attention="block_causal", commit="causal", says_next=True, block_length=8)
    geometry = replace(
        DREAM,
        draft_adapter=AdapterConfig(rank=4, scale=4.0),
        query_scaling=QueryScaling(beta=0.1, original_positions=32),
    )
    engine = cuda.engine(geometry, replace(spec, has_draft_adapter=True), kernel=paged_kernel, capture=capture)
    drafting = set()
    for number in range(6):
        own = SamplingParams(max_tokens=24, temperature=0.8 * (number % 3 == 0), ignore_eos=True)
        unmask = "linear_spec" if number % 4 else "leftmost"
        diffusion = DiffusionParams(unmask=unmask, draft_threshold=0.3 * (number % 2), draft_adapter=number % 5 > 0)
        asked = Submission(request_id=str(number), prompt_ids=[5 + number] * 13, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(asked))
        with cuda.step() as (waits, _):
            outputs = engine.step()
        assert not waits
        assert cuda.copies == ONCE
        assert not [output for output in outputs if output.finish_reason == "error"]
        drafting.add(sum(one.block.is_drafted and not one.verifies for one in engine.scheduler.running))
    assert len(drafting) > 2, "some draft in a step in which others verify"


def test_a_step_without_any_target_ends_when_the_device_has_computed_it(cuda):
    spec = replace(SPEC, max_model_len=128, attention="block_causal", block_length=8)
    engine = cuda.engine(LLADA, spec, requests=1, kernel=paged_kernel)
    engine.scheduler.max_batch_rows = 40
    own = SamplingParams(max_tokens=8, ignore_eos=True)
    asked = Submission(request_id="long", prompt_ids=[5] * 96, sampling=own, diffusion=DiffusionParams())
    engine.submit(engine.new_request(asked))
    for _ in range(2):
        with cuda.step() as (waits, _):
            assert engine.step() == []
        assert not waits
        assert cuda.copies == ONCE
    assert (engine.stats().decoding.denoising_steps, engine.stats().rows_computed) == (0, 80)


def a_block_step(cuda, requests, num_layers, drawn=None, geometry=LLADA, capture=None):
    """Launches of a step in which all of these requests compute only their open block."""
    geometry = replace(geometry, num_layers=num_layers)
    engine = cuda.engine(geometry, SPEC, requests=requests, kernel=paged_kernel, capture=capture)
    for number in range(requests):
        own = SamplingParams(max_tokens=1024, ignore_eos=True, seed=number, **(drawn or {}))
        diffusion = DiffusionParams(cache="dual", unmask="fixed", steps=256, block_length=32, lookahead=None)
        one = Submission(request_id=str(number), prompt_ids=[5] * 896, sampling=own, diffusion=diffusion)
        engine.submit(engine.new_request(one))
    engine.step()
    with cuda.step() as (waits, launches):
        engine.step()
    assert engine.stats().decoding.batch_rows.total == requests * (896 + 1024 + 32)
    assert not waits
    assert cuda.copies == ONCE
    return sum(launches.values())


def test_launches_do_not_grow_with_the_number_of_requests(cuda):
    one, many = (a_block_step(cuda, requests, LAYERS[0]) for requests in (1, 24))
    assert one == many


@pytest.mark.slow
def test_sampling_launches_more_for_each_256_targets_only(cuda):
    """Sorting and its like take memory for each logit: 16 requests have 448 targets, 32 have 896."""
    drawn = {"temperature": 0.8, "top_p": 0.9}
    one, few, many = (a_block_step(cuda, requests, LAYERS[0], drawn) for requests in (1, 16, 32))
    assert many - one == 3 * (few - one)


def test_launches_of_a_layer_and_beside_the_layers(cuda):
    few, many = (a_block_step(cuda, 4, num_layers) for num_layers in LAYERS)
    a_layer, rest = divmod(many - few, LAYERS[1] - LAYERS[0])
    assert rest == 0
    assert a_layer <= 30
    assert few - LAYERS[0] * a_layer <= 60


def test_norms_of_queries_and_keys_launch_what_the_roofline_counts(cuda):
    plain, normed = (a_block_step(cuda, 4, 2, geometry=replace(LLADA, qk_norm=qk_norm)) for qk_norm in (False, True))
    assert normed - plain == 2 * QK_NORM_LAUNCHES


@pytest.mark.slow
def test_experts_launch_what_the_roofline_counts_whatever_their_number(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    moe = MoEConfig(num_experts=8, experts_per_token=2, ff_dim=64, is_normalised=True)
    plain, few, many = (
        a_block_step(cuda, 4, 2, geometry=replace(LLADA, moe=own)) for own in (None, moe, replace(moe, num_experts=32))
    )
    assert few == many == plain + 2 * MOE_LAUNCHES
    layer = replace(moe, score="sigmoid", has_choice_bias=True, num_groups=4, groups_per_token=2, shared_ff_dim=64)
    assert a_block_step(cuda, 4, 2, geometry=replace(LLADA, moe=layer)) <= few + 2 * 20
    assert a_block_step(cuda, 4, 2, geometry=replace(LLADA, moe=layer), capture=launched_at_once) <= 30


def test_without_grouped_products_the_host_does_not_wait_either(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    moe = MoEConfig(num_experts=8, experts_per_token=2, ff_dim=64, is_normalised=True)
    few, many = (
        a_block_step(cuda, 4, 2, geometry=replace(LLADA, moe=own)) for own in (moe, replace(moe, num_experts=16))
    )
    assert many > few, "every expert has kernels of its own"


def test_a_step_through_a_graph_launches_it_and_the_scoring(cuda):
    """Whatever the number of layers; and the copy into its buffers."""
    few, many = (a_block_step(cuda, 4, num_layers, capture=launched_at_once) for num_layers in LAYERS)
    assert few == many <= 30
    by_kernel, by_graph = (a_block_step(cuda, 16, LAYERS[0], capture=capture) for capture in (None, launched_at_once))
    assert by_kernel - by_graph > 25 * LAYERS[0]
    assert a_block_step(cuda, 17, LAYERS[0], capture=launched_at_once) == by_kernel, "544 rows are too many"


def a_step(cuda, **asked):
    """(waits, copies) of the first step of a request."""
    engine = cuda.engine(LLADA, SPEC, requests=1, kernel=paged_kernel)
    own = SamplingParams(max_tokens=32, **asked)
    one = Submission(request_id="one", prompt_ids=[5] * 4, sampling=own, diffusion=DiffusionParams())
    engine.submit(engine.new_request(one))
    with cuda.step() as (waits, _):
        outputs = engine.step()
    return waits, dict(cuda.copies), outputs


def test_it_would_find_what_a_cpu_forgives(cuda, monkeypatch, caplog):
    """Put back: a number written through indices, a copy of its own, a tensor that stayed on the host."""
    limited = {"allowed_ids": frozenset(range(9))}
    assert a_step(cuda, **limited) == ({}, ONCE, [])
    with monkeypatch.context() as patched:
        patched.setattr("engine.scoring.edits.fill", lambda tensor, places, value: tensor.__setitem__(places, value))
        assert a_step(cuda, **limited)[0] == {"number through indices": 1}
    with monkeypatch.context() as patched:
        draw = sampling.draw
        patched.setattr(sampling, "draw", lambda *own: to_device(np.arange(3), CUDA) is not None and draw(*own))
        assert a_step(cuda, temperature=1.0)[1] == {"to the device": 2, "to the host": 1}
    with monkeypatch.context() as patched:
        patched.setattr(Rows, "of", lambda *_: torch.zeros(3, 2000))
        _, _, outputs = a_step(cuda, temperature=1.0)
        assert [output.finish_reason for output in outputs] == ["error"], caplog.text


@pytest.mark.parametrize("name", ["int8", "fp8", "int4"])
def test_weights_in_codes(cuda, submission, monkeypatch, name):
    """torchao's tensors on CUDA: as large as planned; their products do not wait, and keep the model's dtype."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    check_quantization(name, CUDA, torch.bfloat16)
    geometry = replace(DREAM, dim=256, head_dim=64)
    engine = cuda.engine(geometry, replace(SPEC, shift=1, max_model_len=128), requests=20, kernel=paged_kernel)
    model, scheme = engine.runner.model, SCHEMES[name]
    quantiser = Quantiser(model, scheme, torch.bfloat16, CUDA)
    for layer, plain in list(quantised_weights(model, scheme)):
        quantiser.end(f"{layer}.weight", plain.weight)
    assert engine.runner.weight_bytes == weight_bytes(geometry, torch.bfloat16, name)
    assert engine.runner.num_parameters == geometry.num_parameters
    if name == "int4":  # torchao indexes within its product, which the device that is not there cannot
        return
    for number in range(3):
        engine.submit(engine.new_request(submission(number, prompt=[5] * 30, gen_length=16)))
    steps_of(engine, cuda, 2)
