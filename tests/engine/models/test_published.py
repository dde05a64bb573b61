"""Checkpoints that were published as codes: read as the numbers that they stand for, or refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import ConfigError, EngineConfig, LoadError, load
from engine.models import describe, load_model
from engine.models.quantised.layers import QuantisedLinear

CPU = torch.device("cpu")
TILE = (16, 48)
"""No divisor of the weights' widths: the last tiles are smaller."""


def compressed(type_, strategy, **weights):
    scheme = {"num_bits": 8, "type": type_, "strategy": strategy, "symmetric": True, **weights}
    kind = weights.get("format") or {"int": "int-quantized", "float": "float-quantized"}[type_]
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": {"num_bits": 8}}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


def by_channel(weight):
    return weight.abs().amax(dim=1, keepdim=True)


def by_tensor(weight):
    return weight.abs().amax().reshape(1)


def by_tile(weight):
    """The plain loop: one peak for each tile."""
    rows, columns = (range(0, size, own) for size, own in zip(weight.shape, TILE, strict=True))
    peaks = [[weight[row : row + TILE[0], col : col + TILE[1]].abs().amax() for col in columns] for row in rows]
    return torch.tensor(peaks)


def spread(peaks, shape):
    """[rows, columns] of each number's peak."""
    if peaks.dim() == 2 and peaks.shape[1] > 1:
        row, column = (torch.arange(size) // own for size, own in zip(shape, TILE, strict=True))
        return peaks[row][:, column]
    return peaks.expand(shape) if peaks.dim() == 2 else peaks.reshape(1, 1).expand(shape)


READ = {
    "int8 by channel": (compressed("int", "channel"), torch.int8, by_channel, "weight_scale"),
    "int8 by tensor": (compressed("int", "tensor"), torch.int8, by_tensor, "weight_scale"),
    "fp8 by channel": (compressed("float", "channel"), torch.float8_e4m3fn, by_channel, "weight_scale"),
    "fp8 by block": (
        compressed("float", "block", block_structure=list(TILE)),
        torch.float8_e4m3fn,
        by_tile,
        "weight_scale",
    ),
    "DeepSeek's": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(TILE), "activation_scheme": "dynamic"},
        torch.float8_e4m3fn,
        by_tile,
        "weight_scale_inv",
    ),
    "fp8 by tensor": ({"quant_method": "fp8"}, torch.float8_e4m3fn, by_tensor, "weight_scale"),
}


@pytest.fixture
def checkpoint(llada_tiny, tmp_path):
    """A copy that a test may change."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(llada_tiny / name, tmp_path / name)
    return tmp_path


def says(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def coded(folder, kind):
    """Makes codes of the layers' weights, and returns the numbers that they stand for."""
    config, dtype, peaks_of, suffix = READ[kind]
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        expected[name] = weight
        if ".blocks." not in name or weight.dim() != 2:
            continue
        scales = peaks_of(weight.float()) / (127 if dtype == torch.int8 else 448)
        wide = spread(scales, weight.shape)
        codes = weight.float() / wide
        tensors[name] = (codes.round() if dtype == torch.int8 else codes).to(dtype)
        layer = name.removesuffix("weight")
        tensors |= {layer + suffix: scales, layer + "input_scale": torch.ones(1)}
        expected[name] = tensors[name].float() * wide
    save_file(tensors, folder / "model.safetensors")
    says(folder, quantization_config=config)
    return expected


def holds(folder, expected):
    """The model that is loaded has these numbers, and no others."""
    described = describe(folder)
    model = load_model(folder, described, torch.float32, CPU)
    parameters = dict(model.named_parameters())
    places = described.family.destinations(described.geometry)
    assert set(places) == set(expected)
    for name, place in places.items():
        assert torch.allclose(place.within(parameters), expected[name].float(), rtol=1e-6, atol=0), name


@pytest.mark.parametrize("kind", READ)
def test_codes_are_read_as_the_numbers_that_they_stand_for(checkpoint, kind):
    holds(checkpoint, coded(checkpoint, kind))


def test_scales_beside_numbers(checkpoint):
    """Of a checkpoint that tells how it would be quantised, or whose codes somebody has multiplied already."""
    numbers = coded(checkpoint, "int8 by channel")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {name: each.contiguous() for name, each in numbers.items()}, checkpoint / "model.safetensors")
    with pytest.raises(LoadError, match="_scale' beside it, and is no codes"):
        load(EngineConfig(model=str(checkpoint)))


def test_parts_of_them_are_not_read(checkpoint):
    coded(checkpoint, "int8 by channel")
    with pytest.raises(ConfigError, match="are codes, of which no parts are read"):
        load(EngineConfig(model=str(checkpoint), tensor_parallel_size=2))


def test_scales_may_lie_in_another_file_than_their_weights(checkpoint):
    expected = coded(checkpoint, "int8 by channel")
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    files = {"a.safetensors": [n for n in tensors if "scale" in n], "b.safetensors": list(expected)}
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, checkpoint / file)
    places = {name: file for file, names in files.items() for name in names}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    holds(checkpoint, expected)


def test_they_may_become_codes_again(checkpoint):
    coded(checkpoint, "fp8 by channel")
    model = load_model(checkpoint, describe(checkpoint), torch.float32, CPU, quantization="int8")
    assert any(isinstance(module, QuantisedLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "weights in awq's format of 4 bits are not read; .*`quantization: int4`"),
        (
            {"quant_method": "gptq", "bits": 8},
            "weights in gptq's format of 8 bits are not read; .*`quantization: int8`",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes's format of 4 bits"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "weights in torchao's format are not read"),
        ({"quant_method": "mxfp4"}, "weights in mxfp4's format are not read"),
        ("int8", "quantization_config is 'int8'; it should be a valid dictionary"),
        ({"bits": 4}, "quantization_config lacks 'quant_method'"),
        ({"quant_method": "compressed-tensors", "format": "x", "config_groups": {}}, "config_groups is"),
        (compressed("int", "channel", format="pack-quantized"), r"format pack-quantized \(int8, .* is not read"),
        (compressed("int", "group", num_bits=4), r"\(int4, a scale for each group\) is not read.*`quantization: int4`"),
        (compressed("int", "channel", symmetric=False), "only symmetric int8 and fp8"),
        (compressed("float", "block"), "blocks are None"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"blocks are \[128\]"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(checkpoint, monkeypatch, config, message):
    monkeypatch.setattr("engine.models._on_device", None)
    says(checkpoint, quantization_config=config)
    with pytest.raises(LoadError, match=message) as caught:
        load(EngineConfig(model=str(checkpoint)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, scale: tensors.pop(scale), r"is I8, and its '.*weight_scale' is missing"),
        (
            lambda tensors, scale: tensors.update({scale: torch.ones(3)}),
            r"weight_scale' is \[3\], which does not scale",
        ),
    ],
)
def test_codes_without_their_scales(checkpoint, monkeypatch, change, message):
    coded(checkpoint, "int8 by channel")
    monkeypatch.setattr("engine.models._on_device", None)
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors, next(name for name in tensors if name.endswith("weight_scale")))
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(LoadError, match=message):
        load(EngineConfig(model=str(checkpoint)))


def test_codes_that_no_config_tells_of(checkpoint):
    coded(checkpoint, "int8 by channel")
    says(checkpoint, quantization_config=None)
    with pytest.raises(LoadError, match=r"is I8, expected one of|is not part of this architecture"):
        load(EngineConfig(model=str(checkpoint)))
