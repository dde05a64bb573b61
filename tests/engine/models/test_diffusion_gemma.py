"""The DiffusionGemma family: its layout, what it refuses, its logits, and the plain loop against the published rows."""

import json

import pytest
import torch

from engine import LoadError
from engine.execution.budget import kv_bytes_per_token
from engine.models import describe, load_model
from engine.models.families.diffusion_gemma import Config, destinations
from engine.models.sandwich import OpenRows
from tests.golden import diffusion_gemma as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows


@pytest.fixture(scope="module")
def checkpoint(diffusion_gemma_tiny):
    return Checkpoint.load(diffusion_gemma_tiny)


@pytest.fixture
def tiny(diffusion_gemma_tiny):
    return json.loads((diffusion_gemma_tiny / "config.json").read_text())


def changed(config, **text):
    return {**config, "text_config": {**config["text_config"], **text}}


def test_the_published_geometry(published):
    geometry = Config.read(published("diffusiongemma-26b-a4b")).geometry
    assert round(geometry.num_parameters / 1e9, 1) == 25.3
    assert round(geometry.num_active_parameters / 1e9, 1) == 3.8
    assert [layer for layer in range(30) if geometry.window_of(layer) is None] == [5, 11, 17, 23, 29]
    assert (geometry.heads_of(0), geometry.heads_of(5)) == ((8, 256, 2), (2, 512, 1))
    kept = 25 * 2 * 8 * 256 + 5 * 2 * 2 * 512
    beside = 2 * geometry.dim
    assert kv_bytes_per_token(geometry, torch.bfloat16, torch.bfloat16) == 2 * (kept + beside)
    scales = 4 * (25 * 2 * 8 + 5 * 2 * 2)
    assert kv_bytes_per_token(geometry, torch.bfloat16, torch.int8) == kept + scales + 2 * beside
    names = destinations(geometry)
    assert "model.decoder.layers.4.self_attn.v_proj.weight" in names
    assert "model.decoder.layers.5.self_attn.v_proj.weight" not in names


def test_what_decoding_needs_to_know(diffusion_gemma_tiny):
    spec = describe(diffusion_gemma_tiny).spec
    assert (spec.family, spec.mask_id, spec.eos_ids) == ("diffusion_gemma", None, {1, 106, 50})
    assert (spec.attention, spec.commit, spec.block_length, spec.window) == ("block_causal", "causal", 16, 20)
    assert (spec.never_drawn, spec.has_grid) == (set(), False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("hidden_activation", "silu"),
        ("tie_word_embeddings", False),
        ("final_logit_softcapping", None),
        ("use_bidirectional_attention", "all"),
        ("per_layer_config", [{}]),
        ("sliding_window", 1),
        ("rope_scaling", {"rope_type": "linear"}),
        ("layer_types", ["sliding_attention"] * 4),
        ("layer_types", ["chunked_attention"] * 5),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(tiny, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read(changed(tiny, **{key: value}))


def test_both_kinds_of_heads_must_be_possible(tiny):
    with pytest.raises(LoadError, match="4 heads cannot share 3"):
        Config.read(changed(tiny, num_global_key_value_heads=3))
    with pytest.raises(LoadError, match="heads have 31 numbers"):
        Config.read(changed(tiny, global_head_dim=31))


def test_all_parameters_are_counted(checkpoint):
    assert (
        sum(parameter.numel() for parameter in checkpoint.model.parameters()) == checkpoint.model.config.num_parameters
    )


def test_logits_of_the_published_code(checkpoint):
    found = list(distances(checkpoint))
    assert len(found) == 4
    assert max(found) < LARGEST_DISTANCE


class Alone:
    """Each row sees itself."""

    def attend(self, layer, q, k, v):
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


@torch.inference_mode()
def test_rows_of_the_block_and_of_the_context_are_told_apart_in_one_forward(checkpoint):
    """A vector changes rows of the block alone, and zeros say nothing."""
    model, ids, positions = checkpoint.model, torch.arange(8) + 3, torch.arange(8)
    on, vectors = torch.arange(8) >= 4, torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    mixed = model(ids, positions, Alone(), open_rows=OpenRows(on, vectors))
    context = model(ids, positions, Alone())
    canvas = model(ids, positions, Alone(), open_rows=OpenRows(torch.ones_like(on), vectors))
    silent = model(ids, positions, Alone(), open_rows=OpenRows(torch.ones_like(on), torch.zeros(8, 64)))
    torch.testing.assert_close(mixed, torch.where(on[:, None], canvas, context), atol=1e-5, rtol=1e-5)
    assert (canvas - silent).abs().amax(dim=-1).min() > 1e-3
    some = model(ids, positions, Alone(), torch.tensor([6, 1]), open_rows=OpenRows(on, vectors))
    torch.testing.assert_close(some, mixed[[6, 1]], atol=1e-5, rtol=1e-5)


def test_bfloat16_is_near(diffusion_gemma_tiny, checkpoint):
    narrow = load_model(diffusion_gemma_tiny, describe(diffusion_gemma_tiny), torch.bfloat16, torch.device("cpu"))
    ids, positions = torch.arange(8) + 3, torch.arange(8)
    with torch.inference_mode():
        ours, theirs = (model.logits(model(ids, positions, Alone())) for model in (narrow, checkpoint.model))
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().mean() < 0.3
    assert narrow.blocks[0].moe.router.scale.dtype == torch.float32


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_plain_loop_decodes_as_the_published_sampler(checkpoint, is_short):
    """With both kinds of draws: those that rows define, and torch's own, which the engine does not have."""
    rows = read_rows(checkpoint.folder / "generations.json")
    assert len(rows) == 42
    assert sum(not golden.takes(row) for row in rows) == 8
    some = [row for row in rows if (row["nfe"] <= 6) == is_short and (is_short or not golden.takes(row))]
    some = rather_short(some, lambda row: (row["noise"], row["max_new_tokens"])) if is_short else some
    assert "torch" in {row["noise"] for row in some}
    assert differences(some, golden.through_plain_loop(checkpoint, some)) == []
