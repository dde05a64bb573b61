"""The LLaDA2 family: its layout, what it refuses, its logits, and the plain loop against LLaDA2.0's rows."""

import pytest

from engine import LoadError
from engine.models.families.llada2 import Config, destinations
from tests.golden import llada2 as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows

TOKENS = {"<|mask|>": 156895, "<|endoftext|>": 156892, "<|role_end|>": 156900}


@pytest.fixture(scope="module")
def checkpoint(llada2_tiny):
    return Checkpoint.load(llada2_tiny)


@pytest.fixture
def config(published):
    return published("llada2-mini")


@pytest.mark.parametrize(
    ("name", "billions", "active", "tensors"),
    [("llada2-mini", 16.3, 1.4, 14_813), ("llada2-flash", 102.9, 6.2, 24_161)],
)
def test_the_published_geometry(published, name, billions, active, tensors):
    """16B-A1.4B and 100B-A6.1B; the published index of flash has so many tensors."""
    geometry = Config.read(published(name)).geometry
    assert round(geometry.num_parameters / 1e9, 1) == billions
    assert round(geometry.num_active_parameters / 1e9, 1) == active
    assert (geometry.head_dim, geometry.rotary_dim, geometry.moe.dense_layers) == (128, 64, {0})
    names = destinations(geometry)
    assert len(names) == tensors
    assert "model.layers.1.mlp.gate.expert_bias" in names
    assert "model.layers.0.mlp.gate.expert_bias" not in names


def test_what_decoding_needs_to_know(config):
    spec = Config.read(config).spec(TOKENS)
    assert (spec.family, spec.mask_id, spec.eos_ids) == ("llada2_moe", 156895, {156892, 156900})
    assert (spec.attention, spec.block_length, spec.strict_threshold, spec.shift) == ("block_causal", 32, True, 0)
    for missing in ("<|mask|>", "<|endoftext|>"):
        with pytest.raises(LoadError, match="the tokenizer lacks"):
            Config.read(config).spec({name: id_ for name, id_ in TOKENS.items() if name != missing})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_capacity", 48),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("use_bias", True),
        ("use_qk_norm", False),
        ("use_qkv_bias", True),
        ("use_sliding_window", True),
        ("routed_scaling_factor", 0),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(config, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**config, key: value})


def test_a_missing_key_means_a_bias(config):
    with pytest.raises(LoadError, match="lacks 'use_bias'"):
        Config.read({key: value for key, value in config.items() if key != "use_bias"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3}, "256 experts cannot be in 3 groups"),
        ({"topk_group": 9}, "experts are of 9 groups; there are 8"),
        ({"n_group": 64, "topk_group": 1}, "each token has 8 experts of 4"),
    ],
)
def test_groups_that_cannot_be(config, changes, message):
    with pytest.raises(LoadError, match=message):
        Config.read({**config, **changes})


@pytest.mark.parametrize(("experts", "is_normalised"), [(1, False), (2, True), (8, True)])
def test_a_single_expert_of_a_token_is_not_normalised(config, experts, is_normalised):
    assert Config.read({**config, "num_experts_per_tok": experts}).geometry.moe.is_normalised == is_normalised


def test_logits_of_the_published_code(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


def test_the_plain_loop_decodes_as_the_published_sampler(checkpoint):
    rows = [row for row in read_rows(checkpoint.folder / "generations.json") if golden.takes(row)]
    assert len(rows) == 81
    rows = rather_short(rows, lambda row: (row["eos_early_stop"], row["threshold"] < 0.9))
    assert {row["eos_early_stop"] for row in rows} == {False, True}
    assert differences(rows, golden.through_plain_loop(checkpoint, rows)) == []
