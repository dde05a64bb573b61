"""The SDAR-MoE family: its layout, what it refuses, its logits, and the plain loop against the published rows."""

import pytest
import torch
from safetensors.torch import load_file

from engine import LoadError
from engine.models.families.sdar_moe import Config, destinations
from tests.engine.models.transformers_twin import logits_of_transformers
from tests.golden import sdar as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows


@pytest.fixture(scope="module")
def checkpoint(sdar_moe_tiny):
    return Checkpoint.load(sdar_moe_tiny)


@pytest.fixture
def config(published):
    return published("sdar-30b-a3b")


def test_the_published_geometry(config):
    geometry = Config.read(config).geometry
    assert geometry.num_parameters == 30_532_122_624, "Qwen3-30B-A3B's"
    assert 3.3e9 < geometry.num_active_parameters < 3.4e9
    assert (geometry.qk_norm, geometry.qkv_bias, geometry.head_dim, geometry.rotary_dim) == (True, False, 128, None)
    names = destinations(geometry)
    assert len(names) == 48 * (9 + 3 * 128) + 3
    assert "model.layers.47.mlp.experts.127.down_proj.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" not in names


def test_what_decoding_needs_to_know(config):
    spec = Config.read(config).spec({}, [151645, 151643])
    assert (spec.family, spec.mask_id, spec.shift, spec.eos_ids) == ("sdar_moe", 151669, 0, {151645, 151643})
    assert (spec.attention, spec.block_length, spec.strict_threshold) == ("block_causal", 4, True)


def test_which_layers_have_experts(config):
    geometry = Config.read({**config, "decoder_sparse_step": 3, "mlp_only_layers": [5]}).geometry
    assert [layer for layer in range(12) if geometry.has_experts(layer)] == [2, 8, 11]
    assert "model.layers.5.mlp.gate_proj.weight" in destinations(geometry)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("decoder_sparse_step", 0),
        ("mlp_only_layers", ["3"]),
        ("norm_topk_prob", None),
        ("num_experts", 0),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(config, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**config, key: value})


def test_more_experts_for_a_token_than_there_are(config):
    with pytest.raises(LoadError, match="each token has 8 experts of 4"):
        Config.read({**config, "num_experts": 4})


def test_logits_of_the_published_code(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


def test_logits_of_transformers_qwen3_moe(sdar_moe_tiny):
    tensors = load_file(sdar_moe_tiny / "logits.safetensors")
    weights = load_file(sdar_moe_tiny / "model.safetensors")
    for number in range(len(tensors) // 3):
        ids, block = tensors[f"input_ids_{number}"], int(tensors[f"block_length_{number}"])
        theirs = logits_of_transformers(sdar_moe_tiny, "Qwen3Moe", ids, block, weights=_stacked(weights))
        torch.testing.assert_close(theirs, tensors[f"logits_{number}"], atol=1e-4, rtol=0)


def _stacked(weights):
    """Experts as transformers 5 keeps them: one tensor of all."""
    stacked = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(3):
        theirs = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([weights[f"{theirs}.{expert}.{kind}_proj.weight"] for expert in range(8)])
            for kind in ("gate", "up", "down")
        )
        stacked |= {f"{theirs}.gate_up_proj": torch.cat((gate, up), dim=1), f"{theirs}.down_proj": down}
    return stacked


def test_the_plain_loop_decodes_as_the_published_sampler(checkpoint):
    rows = [row for row in read_rows(checkpoint.folder / "generations.json") if golden.takes(row)]
    assert len(rows) == 48
    some = rather_short(rows, lambda row: row["strategy"])
    assert differences(some, golden.through_plain_loop(checkpoint, some)) == []
