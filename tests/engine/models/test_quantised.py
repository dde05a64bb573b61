"""Weights that torchao stores as codes, against their numbers; what they take; what is refused before it is read."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from engine import ConfigError, EngineConfig, load, plan_memory
from engine.kernels.products import CODES_AT_ONCE, coded_linear
from engine.models import decoded_bytes, describe, load_model, weight_bytes
from engine.models.quantised.layers import QuantisedLinear, Quantiser
from engine.models.quantised.schemes import SCHEMES, check_quantization, stored_bytes
from engine.models.synthetic import geometry_named
from tests.engine.faulty import outputs

CPU = torch.device("cpu")
FAMILIES = ["llada_tiny", "dream_tiny", "sdar_moe_tiny", "llada2_tiny", "nemotron_tiny", "diffusion_gemma_tiny"]


def both(folder):
    description = describe(folder)
    return (load_model(folder, description, torch.float32, CPU, quantization=name) for name in ("none", "int8"))


def numbers(layer):
    return layer.weight.qdata.float() * layer.weight.scale


@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_attention_and_mlps_are_codes_and_nothing_else_is(request, family):
    """Each row has the scale that its largest number gives it, and no number is further off than half of that."""
    plain, coded = both(request.getfixturevalue(family))
    layers = {name: module for name, module in coded.named_modules() if isinstance(module, QuantisedLinear)}
    assert len([name for name in layers if name.endswith((".qkv", ".out"))]) == 2 * len(plain.blocks)
    assert not any(part in name for name in layers for part in ("adapter", "router", "head"))
    given = dict(plain.named_parameters())
    for name, parameter in coded.named_parameters():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            assert torch.equal(parameter, given[name]), name
            continue
        scales = given[name].abs().amax(dim=1, keepdim=True) / 127.5
        assert torch.allclose(layer.weight.scale, scales)
        assert ((numbers(layer) - given[name]).abs() <= 0.5001 * scales).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_product_is_that_of_the_numbers(dtype, bound, rows):
    """And torchao's own, in parts of the weight, which are uneven here."""
    width = 512
    weight = torch.randn(CODES_AT_ONCE // width + 100, width, dtype=dtype)
    layer = QuantisedLinear(SCHEMES["int8"].quantise(weight), torch.nn.Parameter(torch.randn(len(weight), dtype=dtype)))
    x = torch.randn(rows, width, dtype=dtype)
    with torch.inference_mode():
        product, bias = layer(x), layer.bias.float()
        definition = x.float() @ numbers(layer).T + bias
        assert product.dtype == dtype
        assert (product - definition).norm() < bound * definition.norm()
        theirs = F.linear(x, layer.weight, layer.bias)
        assert (product - theirs).norm() < bound * definition.norm()


def test_a_row_does_not_depend_on_how_many_there_are():
    codes, scales = torch.randint(-128, 128, (300, 64), dtype=torch.int8), torch.rand(300, 1)
    x = torch.randn(70, 64)
    with torch.inference_mode():
        whole = coded_linear(x, codes, scales)
        for rows in range(1, 70):
            assert torch.equal(coded_linear(x[:rows], codes, scales), whole[:rows])


def test_each_policy_gives_a_request_in_company_what_it_gives_it_alone(llada_tiny, everybody):
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu", quantization="int8"))
    together = outputs(engine, *everybody)
    for request in everybody[::3]:
        assert outputs(engine, request) == {request.request_id: together[request.request_id]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_loading_takes(request, family):
    folder = request.getfixturevalue(family)
    plain, coded = (
        EngineConfig(model=str(folder), device="cpu", quantization=name, max_model_len=64, kv_cache_tokens=128)
        for name in ("none", "int8")
    )
    plan, info = plan_memory(coded, 2**30), load(coded).info
    planned = plan.footprints["float32"]
    assert (info.num_parameters, info.weight_bytes) == (plan.num_parameters, planned.weight_bytes)
    assert info.quantization == "int8"
    assert info.dtype == "float32"
    before = plan_memory(plain, 2**30).footprints["float32"]
    geometry = describe(folder).geometry
    assert planned.weight_bytes < before.weight_bytes
    assert planned.step_bytes == before.step_bytes + decoded_bytes(geometry, torch.float32, "int8")


def test_a_layer_is_codes_before_the_next_one_is_read(llada_tiny, monkeypatch):
    """What is in memory as numbers, after each tensor: never more than the layer that is read."""
    held, most = set(), []
    begin, end = Quantiser.begin, Quantiser.end

    def begun(self, weight):
        memory = begin(self, weight)
        held.add(memory.data_ptr())
        most.append(len(held))
        return memory

    def ended(self, parameter, weight):
        held.remove(weight.data_ptr())
        end(self, parameter, weight)

    monkeypatch.setattr(Quantiser, "begin", begun)
    monkeypatch.setattr(Quantiser, "end", ended)
    model = load_model(llada_tiny, describe(llada_tiny), torch.float32, CPU, quantization="int8")
    assert len(most) == 4 * len(model.blocks)
    assert max(most) <= 4
    assert not held


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_torchao_stores(name, dtype):
    weight = torch.randn(48, 128, dtype=dtype)
    coded = SCHEMES[name].quantise(weight)
    assert stored_bytes(coded) == SCHEMES[name].stored(48, 128)
    x = torch.randn(5, 128, dtype=dtype)
    exact = F.linear(x, weight)
    assert (F.linear(x, coded) - exact).norm() < {"int8": 0.02, "fp8": 0.05}[name] * exact.norm()


def test_an_8b_model_by_hand():
    """LLaDA-8B: 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 12288, beside two tables of 126,464 rows, and norms."""
    geometry = geometry_named("llada-8b", 4096)
    rest = (2 * geometry.vocab_size * 4096 + 65 * 4096) * 2
    rows, numbers = 32 * (4 * 4096 + 2 * 12288 + 4096), 32 * (4 * 4096 * 4096 + 3 * 4096 * 12288)
    bfloat16 = torch.bfloat16
    assert weight_bytes(geometry, bfloat16, "int8") == rest + numbers + 5 * rows
    assert weight_bytes(geometry, bfloat16, "fp8") == rest + numbers + 4 * rows
    assert weight_bytes(geometry, bfloat16, "int4") == rest + numbers // 2 + numbers // 128 * 4
    assert weight_bytes(geometry, bfloat16) == rest + 2 * numbers == geometry.weight_bytes(bfloat16)


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        ("cpu", {"quantization": "int4"}, "quantization is 'int4', which needs CUDA: torchao has no product"),
        ("cpu", {"quantization": "fp8"}, "quantization is 'fp8', which needs CUDA: CPUs turn e4m3"),
        ("cuda", {"quantization": "int4", "dtype": torch.float16}, "needs dtype bfloat16; it is float16"),
        ("cpu", {"quantization": "int8", "dtype": torch.float16}, "needs dtype float32 or bfloat16; it is float16"),
    ],
)
def test_what_cannot_be_is_refused_by_name(device, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_quantization(settings["quantization"], torch.device(device), settings.get("dtype", torch.bfloat16))


def test_no_weight_is_read_without_torchao(llada_tiny, monkeypatch):
    monkeypatch.setattr("engine.models._on_device", None)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        ConfigError, match=r"needs torchao, and it is not installed: pip install 'unmask\[quantization\]'"
    ):
        load(EngineConfig(model=str(llada_tiny), device="cpu", quantization="int8"))
    with pytest.raises(ConfigError, match="quantization is 'awq'; it must be one of none, int8, int4, fp8"):
        EngineConfig(model="", quantization="awq")
    plan_memory(EngineConfig(model=str(llada_tiny), quantization="int8"), 2**30)  # a plan needs none


@pytest.mark.slow
def test_compiled_layers_compute_the_same(graphs, llada_tiny, submission, run):
    config = EngineConfig(model=str(llada_tiny), device="cpu", quantization="int8")
    asked = submission("r", prompt=list(range(5, 40)), gen_length=32, cache="dual")
    expected = run(load(config), asked)
    compiled = load(replace(config, compile=True))
    num_loaded = len(graphs)
    assert run(compiled, asked) == expected
    assert len(graphs) == num_loaded, "a request had something compiled"


RESIDENT = """
import ctypes, resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from engine.models import Description, load_model, weight_bytes
from engine.models.families import llada
from engine.models.layers import Transformer
from engine.models.quantised.schemes import check_quantization
from engine.models.synthetic import config_of

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

cpu, folder, name = torch.device("cpu"), Path(sys.argv[1]), "int8"
sizes = {"d_model": 1024, "n_layers": 4, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 3072, "vocab_size": 4096,
         "embedding_size": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
config = config_of(sizes, 512)
described = Description(llada, config.geometry, config.spec({}))
places = llada.destinations(config.geometry)
with torch.device("meta"):
    shapes = dict(Transformer(config.geometry).named_parameters())
tensors = {key: torch.randn(place.within(shapes).shape) for key, place in places.items()}
save_file(tensors, folder / "model.safetensors")
del tensors
check_quantization(name, cpu, torch.float32)
warm = load_model(folder, described, torch.float32, cpu, quantization=name)
del warm
before = resident()
model = load_model(folder, described, torch.float32, cpu, quantization=name)
print(resident() - before, weight_bytes(config.geometry, torch.float32, name))
"""


@pytest.mark.slow
def test_the_process_grows_by_what_is_planned(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    grown, planned = map(int, printed.split())
    assert abs(grown - planned) < 0.05 * planned
