"""The LLaDA-MoE family: its layout, what it refuses, its logits, the published rows by plain loop and by engine."""

import json
import shutil

import pytest

from engine import LoadError
from engine.models import describe
from engine.models.families import llada, llada_moe
from engine.models.families.llada_moe import Config, destinations
from tests.golden import llada_moe as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows
from tests.golden.through_engine import alone, engine_of, together

TOKENS = {"<|mask|>": 156895, "<|role_end|>": 156900}


@pytest.fixture(scope="module")
def checkpoint(llada_moe_tiny):
    return Checkpoint.load(llada_moe_tiny)


@pytest.fixture
def config(published):
    return published("llada-moe-7b")


def rows_of(checkpoint):
    rows = [row for row in read_rows(checkpoint.folder / "generations.json") if golden.takes(row)]
    assert len(rows) == 40, "without ten that are guided by what the model says without the prompt"
    return rows


def test_the_published_geometry(config):
    geometry = Config.read(config).geometry
    assert round(geometry.num_parameters / 1e9, 2) == 7.36
    beside_embedding = geometry.num_active_parameters - geometry.vocab_size * geometry.dim
    assert round(beside_embedding / 1e9, 1) == 1.4, "A1B"
    assert (geometry.head_dim, geometry.qk_norm, geometry.num_moe_layers) == (128, True, 16)
    assert len(destinations(geometry)) == 16 * (9 + 3 * 64) + 3


def test_what_decoding_needs_to_know(config):
    spec = Config.read(config).spec(TOKENS)
    assert (spec.family, spec.mask_id, spec.eos_ids) == ("llada_moe", 156895, {156892, 156900})
    assert (spec.attention, spec.shift, spec.block_length, spec.max_model_len) == ("full", 0, None, 8192)
    with pytest.raises(LoadError, match=r"the tokenizer lacks '<\|mask\|>'"):
        Config.read(config).spec({})


def test_the_architecture_tells_it_from_the_dense_one(llada_tiny, llada_moe_tiny):
    for folder in (llada_tiny, llada_moe_tiny):
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llada"
    assert describe(llada_tiny).family is llada
    assert describe(llada_moe_tiny).family is llada_moe


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("clip_qkv", 8.0),
        ("moe_layer_freq", [1] * 15),
        ("moe_layer_freq", [2] * 16),
        ("moe_router_enable_expert_bias", True),
        ("partial_rotary_factor", 1.5),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("shared_expert_intermediate_size", 1024),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(config, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**config, key: value})


@pytest.mark.parametrize("share", [0.01, 0.6])
def test_an_uneven_share_of_a_head_cannot_be_rotated(config, share):
    with pytest.raises(LoadError, match="numbers of a head are rotated"):
        Config.read({**config, "hidden_size": 16 * 26, "partial_rotary_factor": share})


def test_dense_layers_are_those_of_the_config(llada_moe_tiny, tmp_path):
    values = json.loads((llada_moe_tiny / "config.json").read_text())
    shutil.copy(llada_moe_tiny / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "moe_layer_freq": [0, 1, 1]}))
    geometry = describe(tmp_path).geometry
    assert [geometry.has_experts(layer) for layer in range(3)] == [False, True, True]
    assert "model.layers.0.mlp.gate_proj.weight" in destinations(geometry)


def test_logits_of_the_published_code(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


@pytest.mark.slow
def test_the_plain_loop_decodes_as_the_published_samplers(checkpoint):
    rows = rather_short(rows_of(checkpoint), lambda row: (row["rule"], row.get("cfg_scale", 0) > 0))
    assert {row["rule"] for row in rows} == {"llada", "fast", "dinfer"}
    assert differences(rows, golden.through_plain_loop(checkpoint, rows)) == []


@pytest.mark.parametrize("stride", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_golden_rows_through_the_engine(checkpoint, stride):
    rows = rows_of(checkpoint)[::stride]
    wanted = [golden.expected(row, checkpoint.spec) for row in rows]
    submissions = [golden.asked(row, str(number)) for number, row in enumerate(rows)]
    assert differences(wanted, together(engine_of(checkpoint.folder), submissions)) == []
    assert differences(wanted[::15], alone(engine_of(checkpoint.folder), submissions[::15])) == []
