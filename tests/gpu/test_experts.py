"""Experts on the device: grouped products against their definition, without a wait, and in a CUDA graph."""

import pytest
import torch

from engine.kernels.experts import mlps

pytestmark = pytest.mark.gpu

EXPERTS, PER_ROW, DIM, WIDTH = 64, 8, 2048, 768


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def routed(device, rows, dtype):
    """Rows, their experts and weights, and the weights of all experts, as `expert_mlps` takes them."""
    torch.manual_seed(0)
    x = torch.randn(rows, DIM, device=device, dtype=dtype)
    weights, chosen = torch.randn(rows, EXPERTS, device=device).softmax(dim=-1).topk(PER_ROW, dim=-1)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, DIM, device=device).mul_(DIM**-0.5).to(dtype)
    down = torch.randn(EXPERTS, DIM, WIDTH, device=device).mul_(WIDTH**-0.5).to(dtype)
    return x, chosen, weights, gate_up, down


def bfloat16(device, rows):
    """What is taken of them: grouped products from Hopper on, the definition elsewhere. None is skipped."""
    return routed(device, rows, torch.bfloat16)


def test_grouped_products_are_taken_from_hopper_on(device):
    has_them = torch.cuda.get_device_capability(device) >= (9, 0)
    assert mlps.has_grouped_products(DIM, WIDTH, torch.bfloat16, device) == has_them


@pytest.mark.parametrize("rows", [1, 32, 700])
def test_experts_in_bfloat16_are_their_definition_in_float32(device, rows):
    values = bfloat16(device, rows)
    expected = mlps.by_definition(*(each.float() if each.is_floating_point() else each for each in values))
    error = (mlps.expert_mlps(*values).float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 2e-2


def test_the_host_does_not_wait(device):
    values = bfloat16(device, 64)
    mlps.expert_mlps(*values)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mlps.expert_mlps(*values)
        mlps.by_definition(*values)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_holds_them(device):
    values = bfloat16(device, 64)
    mlps.expert_mlps(*values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mlps.expert_mlps(*values)
    values[1].copy_(values[1].flip(0))
    values[0].normal_()
    graph.replay()
    torch.testing.assert_close(out, mlps.expert_mlps(*values))


def test_the_definition_is_that_of_a_cpu(device):
    values = routed(device, 20, torch.float32)
    on_cpu = mlps.expert_mlps(*(each.cpu() for each in values))
    torch.testing.assert_close(mlps.expert_mlps(*values).cpu(), on_cpu, atol=1e-3, rtol=1e-3)
