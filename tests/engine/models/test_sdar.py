"""The SDAR family: its checkpoints' layout, its logits, and the plain loop against the published sampler's rows."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from engine import LoadError
from engine.models import describe
from engine.models.families.sdar import Config, destinations
from tests.engine.models.transformers_twin import logits_of_transformers
from tests.golden import sdar as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows


@pytest.fixture(scope="module")
def checkpoint(sdar_tiny):
    return Checkpoint.load(sdar_tiny)


@pytest.fixture(scope="module")
def rows(sdar_tiny):
    return [row for row in read_rows(sdar_tiny / "generations.json") if golden.takes(row)]


@pytest.fixture
def sdar_8b(published):
    return published("sdar-8b")


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("sdar-1.7b", 2_031_739_904, 28), ("sdar-4b", 4_411_424_256, 36), ("sdar-8b", 8_190_735_360, 36)],
)
def test_the_published_geometry(published, name, parameters, layers):
    geometry = Config.read(published(name)).geometry
    assert geometry.num_parameters == parameters, "Qwen3's of this size, with a head of its own"
    assert (geometry.qk_norm, geometry.qkv_bias, geometry.tied_head) == (True, False, False)
    names = destinations(geometry)
    assert len(names) == layers * 11 + 3
    assert f"model.layers.{layers - 1}.self_attn.k_norm.weight" in names
    assert "model.layers.0.self_attn.q_proj.bias" not in names


def test_heads_may_be_wider_than_their_share_of_a_row(checkpoint):
    geometry = checkpoint.model.config
    assert (geometry.dim, geometry.num_heads, geometry.head_dim) == (64, 4, 32)


def test_what_decoding_needs_to_know(sdar_8b):
    spec = Config.read(sdar_8b).spec({}, [151645, 151643])
    assert (spec.mask_id, spec.shift, spec.vocab_size, spec.max_model_len) == (151669, 0, 151936, 32768)
    assert (spec.attention, spec.block_length, spec.strict_threshold) == ("block_causal", 4, True)


@pytest.mark.parametrize(
    ("generation_config", "eos_ids"),
    [({"eos_token_id": [258, 256]}, {256, 258}), ({"eos_token_id": 258}, {258}), ({}, {256}), (None, {256})],
)
def test_what_ends_an_answer(sdar_tiny, tmp_path, generation_config, eos_ids):
    shutil.copy(sdar_tiny / "config.json", tmp_path)
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    assert describe(tmp_path).spec.eos_ids == eos_ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("block_size", 0),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("mask_token_id", None),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("use_sliding_window", True),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(sdar_8b, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**sdar_8b, key: value})


def test_logits_of_the_published_code(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


def test_logits_of_transformers_qwen3(sdar_tiny):
    tensors = load_file(sdar_tiny / "logits.safetensors")
    for number in range(len(tensors) // 3):
        ids, block = tensors[f"input_ids_{number}"], int(tensors[f"block_length_{number}"])
        theirs = logits_of_transformers(sdar_tiny, "Qwen3", ids, block)
        torch.testing.assert_close(theirs, tensors[f"logits_{number}"], atol=1e-4, rtol=0)


def test_the_plain_loop_decodes_as_the_published_sampler(checkpoint, rows):
    some = rather_short(rows, kind)
    assert differences(some, golden.through_plain_loop(checkpoint, some)) == []


def kind(row):
    return row["strategy"], len(row["prompt"]) % row["block_length"] > 0


def test_the_rows_cover_every_strategy(rows):
    kinds = {kind(row) for row in rows}
    strategies = {"sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"}
    assert kinds == {(strategy, has_tail) for strategy in strategies for has_tail in (False, True)}
    assert len(rows) == 112
