"""Layers with experts: routers of every kind against their definition, weights in memory, a whole model in company."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from engine.bench.reference import DenseContext
from engine.models import new_model
from engine.models.experts import MoEConfig, Router
from tests.engine.toys import TOY, TOY_MOE

CPU = torch.device("cpu")
LARGE = MoEConfig(
    num_experts=16,
    experts_per_token=4,
    ff_dim=48,
    shared_ff_dim=80,
    score="sigmoid",
    has_choice_bias=True,
    num_groups=4,
    groups_per_token=2,
    is_normalised=True,
    scale=2.5,
    dense_layers=frozenset({0}),
)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def filled(geometry, dtype=torch.float32):
    torch.manual_seed(0)
    model = new_model(geometry, dtype, CPU)
    for parameter in model.parameters():
        parameter.normal_(1.0, 0.1) if parameter.dim() == 1 else parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model


def routed_by_definition(x, weight, bias, config):
    """One row: its experts, best first, and their weights, in plain Python."""
    logits = (weight.double() @ x.double()).tolist()
    if config.score == "softmax":
        scores = torch.tensor(logits, dtype=torch.float64).softmax(dim=-1).tolist()
    else:
        scores = torch.tensor(logits, dtype=torch.float64).sigmoid().tolist()
    ranked = [score + (bias[e].item() if bias is not None else 0.0) for e, score in enumerate(scores)]
    size = config.num_experts // config.num_groups
    groups = [range(g * size, (g + 1) * size) for g in range(config.num_groups)]
    worth = [sum(sorted((ranked[e] for e in group), reverse=True)[:2]) for group in groups]
    kept = sorted(range(len(groups)), key=lambda g: -worth[g])[: config.groups_per_token]
    allowed = [e for g in kept for e in groups[g]]
    chosen = sorted(allowed, key=lambda e: -ranked[e])[: config.experts_per_token]
    total = sum(scores[e] for e in chosen) if config.is_normalised else 1.0
    return chosen, [scores[e] / total * config.scale for e in chosen]


@pytest.mark.parametrize(
    ("score", "has_bias", "groups", "is_normalised", "scale"),
    list(product(["softmax", "sigmoid"], [False, True], [(1, 1), (4, 2), (2, 1)], [False, True], [1.0, 2.5])),
)
def test_routers_choose_and_weigh_by_their_definition(score, has_bias, groups, is_normalised, scale):
    config = replace(
        LARGE,
        score=score,
        has_choice_bias=has_bias,
        num_groups=groups[0],
        groups_per_token=groups[1],
        is_normalised=is_normalised,
        scale=scale,
    )
    torch.manual_seed(1)
    router = Router(32, config)
    router.logits.weight.normal_()
    if router.bias is not None:
        router.bias.normal_(0.0, 0.3)
    x = torch.randn(20, 32)
    chosen, weights = router(x)
    assert (chosen.dtype, weights.dtype) == (torch.int64, torch.float32)
    for row in range(20):
        expected, shares = routed_by_definition(x[row], router.logits.weight, router.bias, config)
        assert chosen[row].tolist() == expected
        assert weights[row].tolist() == pytest.approx(shares, rel=1e-4)


def test_a_single_normalised_expert_weighs_the_scale_alone():
    router = Router(4, MoEConfig(num_experts=3, experts_per_token=1, ff_dim=8, is_normalised=True, scale=2.5))
    router.logits.weight.normal_()
    assert router(torch.randn(5, 4))[1].flatten().tolist() == pytest.approx([2.5] * 5)


def test_a_bias_chooses_and_does_not_weigh():
    router = Router(4, MoEConfig(num_experts=3, experts_per_token=1, ff_dim=8, score="sigmoid", has_choice_bias=True))
    router.logits.weight.zero_()
    router.bias.copy_(torch.tensor([0.0, 5.0, 1.0]))
    chosen, weights = router(torch.ones(1, 4))
    assert (chosen.item(), weights.item()) == (1, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_routers_are_float32_in_any_model(dtype):
    """And are counted so: near scores decide which experts a row has."""
    geometry = replace(TOY, moe=LARGE)
    model = new_model(geometry, dtype, CPU)
    routers = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert routers == {"blocks.1.mlp.router.bias", "blocks.1.mlp.router.logits.weight"}
    assert sum(p.numel() * p.element_size() for p in model.parameters()) == geometry.weight_bytes(dtype)


@pytest.mark.parametrize("moe", [TOY_MOE, LARGE, replace(LARGE, dense_layers=frozenset(range(TOY.num_layers)))])
def test_parameters_are_counted_as_they_are(moe):
    geometry = replace(TOY, moe=moe)
    model = new_model(geometry, torch.float32, CPU)
    assert sum(parameter.numel() for parameter in model.parameters()) == geometry.num_parameters
    model.pack()
    assert sum(parameter.numel() for parameter in model.parameters()) == geometry.num_parameters
    unused = (moe.num_experts - moe.experts_per_token) * 3 * TOY.dim * moe.ff_dim
    assert geometry.num_parameters - geometry.num_active_parameters == geometry.num_moe_layers * unused


def test_packed_experts_compute_the_same():
    geometry = replace(TOY, moe=LARGE)
    plain, model = filled(geometry), filled(geometry)
    model.pack()
    ids = torch.arange(50) * 7 % geometry.vocab_size
    hidden = [each(ids, torch.arange(50), DenseContext(each, 50)) for each in (plain, model)]
    torch.testing.assert_close(*hidden, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("moe", [TOY_MOE, LARGE])
def test_a_layer_gives_a_row_the_same_bits_alone_and_in_company(moe):
    model = filled(replace(TOY, moe=moe))
    model.pack()
    mlp, x = model.blocks[1].mlp, torch.randn(200, TOY.dim)
    together = mlp(x)
    for rows in (slice(0, 1), slice(3, 8), slice(50, 137), slice(0, 200, 3)):
        assert torch.equal(mlp(x[rows]), together[rows])


def test_only_rotated_numbers_of_a_head_are_rotated():
    geometry = replace(TOY, rotary_dim=16)
    model = filled(geometry)
    x = torch.randn(3, TOY.dim)
    (q, k, _), (still, still_k, _) = (
        model.blocks[0].before(x, model.cos[positions], model.sin[positions])
        for positions in (torch.tensor([5, 90, 200]), torch.zeros(3, dtype=torch.int64))
    )
    for turned, plain in ((q, still), (k, still_k)):
        assert torch.equal(turned[..., 16:], plain[..., 16:])
        low, high = plain[..., :8], plain[..., 8:16]
        angles = torch.tensor([5.0, 90.0, 200.0])[:, None, None] / TOY.rope_theta ** (torch.arange(8.0) / 8)
        expected = torch.cat(
            (low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), dim=-1
        )
        torch.testing.assert_close(turned[..., :16], expected, atol=1e-4, rtol=1e-4)
