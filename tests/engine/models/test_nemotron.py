"""Nemotron-Labs-Diffusion: its checkpoints, its rotation, its logits, and the plain loops against its samplers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LoadError
from engine.bench.causal_commit import CommittedSequence
from engine.models import describe, load_model
from engine.models.families.nemotron import Config, destinations
from engine.models.rotary import QueryScaling, Yarn, rotary_table
from tests.golden import nemotron as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows


@pytest.fixture(scope="module")
def checkpoint(nemotron_tiny):
    return Checkpoint.load(nemotron_tiny)


@pytest.fixture
def copied(nemotron_tiny, tmp_path):
    return shutil.copytree(nemotron_tiny, tmp_path / "copy")


@pytest.fixture
def published_8b(published):
    return published("nemotron-labs-diffusion-8b")


@pytest.mark.parametrize(
    ("size", "layers", "parameters"),
    [("3b", 26, 3_831_659_520), ("8b", 34, 8_489_553_920), ("14b", 40, 13_506_073_600)],
)
def test_the_published_geometry(published, size, layers, parameters):
    geometry = Config.read(published(f"nemotron-labs-diffusion-{size}")).geometry
    assert geometry.num_parameters == parameters
    assert (geometry.qk_norm, geometry.qkv_bias, geometry.tied_head) == (False, False, False)
    names = destinations(geometry)
    assert len(names) == layers * 9 + 3
    assert f"encoder.layers.{layers - 1}.self_attn.o_proj.weight" in names
    assert {"encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"} < names.keys()


def test_what_decoding_needs_to_know(published_8b):
    spec = Config.read(published_8b).spec({}, [2])
    assert (spec.mask_id, spec.shift, spec.vocab_size, spec.max_model_len) == (100, 0, 131_072, 262_144)
    assert (spec.attention, spec.commit, spec.says_next, spec.block_length) == ("block_causal", "causal", True, 32)
    assert not spec.strict_threshold
    assert spec.eos_ids == {2, 11}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("block_size", 0),
        ("hidden_act", "gelu"),
        ("mask_token_id", None),
        ("mlp_bias", True),
        ("rope_parameters", None),
        ("sliding_window", 4096),
        ("tie_word_embeddings", True),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(published_8b, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**published_8b, key: value})


@pytest.mark.parametrize(("key", "value"), [("rope_type", "linear"), ("rope_theta", 1.0), ("factor", 0)])
def test_rotations_that_would_be_computed_wrongly_are_refused(published_8b, key, value):
    rope = {**published_8b["rope_parameters"], key: value}
    with pytest.raises(LoadError, match=f"rope_parameters.{key}"):
        Config.read({**published_8b, "rope_parameters": rope})


def test_frequencies_are_the_published_ones(checkpoint):
    tensors = load_file(checkpoint.folder / "logits.safetensors")
    config = checkpoint.model.config
    base = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
    torch.testing.assert_close(config.yarn.frequencies(base, config.rope_theta), tensors["inv_freq"])
    assert config.yarn.amplitude == float(tensors["rope_factor"]) == 1.0


def test_scales_that_differ_change_the_amplitude():
    yarn = Yarn(factor=16.0, original_positions=32, mscale=1.0, mscale_all_dim=0.0)
    assert yarn.amplitude == pytest.approx(1.2772589)
    plain, scaled = (rotary_table(32, 8, 1e6, one) for one in (replace(yarn, mscale_all_dim=1.0), yarn))
    torch.testing.assert_close(scaled[0], plain[0] * yarn.amplitude)
    assert replace(yarn, factor=0.25).amplitude == 1.0


def test_queries_grow_with_each_span_of_the_original_positions():
    table = QueryScaling(beta=0.1, original_positions=4).table(9).flatten()
    assert table[:4].tolist() == [1.0] * 4
    assert table[4:].tolist() == pytest.approx([*[1.0693147] * 4, 1.1098612])


def test_logits_of_the_published_code(checkpoint, nemotron_spec_tiny):
    for one in (checkpoint, Checkpoint.load(nemotron_spec_tiny)):
        found = list(distances(one))
        assert len(found) == 36
        assert max(found) < LARGEST_DISTANCE


def test_logits_under_the_config_of_the_base_models(copied):
    """Its factor is below 1, and its end another one."""
    shutil.copy(copied / "config.base.json", copied / "config.json")
    tensors, one = load_file(copied / "logits.safetensors"), Checkpoint.load(copied)
    assert one.model.config.yarn.factor == 0.25
    numbers = [name.rpartition("_")[2] for name in tensors if name.startswith("base_config_causal")]
    assert numbers
    for number in numbers:
        with torch.inference_mode():
            logits = CommittedSequence(one.model).append(tensors[f"prompt_{number}"].tolist())
        torch.testing.assert_close(logits, tensors[f"base_config_causal_{number}"], atol=LARGEST_DISTANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nemotron_tiny", "nemotron_spec_tiny"])
def test_the_plain_loops_decode_as_the_published_samplers(request, name):
    """One of each mode, with and without an adapter, and two whose context is not causal, which the engine lacks."""
    folder = request.getfixturevalue(name)
    every = read_rows(folder / "generations.json")
    rows = rather_short(filter(golden.takes, every), lambda row: (row["mode"], row.get("adapter")))
    rows += [row for row in every if not golden.takes(row)][:2]
    assert differences(rows, golden.through_plain_loop(Checkpoint.load(folder), rows)) == []


def test_every_mode_is_in_the_rows(nemotron_tiny, nemotron_spec_tiny):
    rows = read_rows(nemotron_tiny / "generations.json")
    assert {row["mode"] for row in rows if golden.takes(row)} == {row["mode"] for row in rows}
    assert sum(map(golden.takes, rows)) == 74
    spec_rows = read_rows(nemotron_spec_tiny / "generations.json")
    assert {row.get("adapter") for row in spec_rows if golden.takes(row)} >= {True, False}
    assert max(max(row["accepted"]) for row in spec_rows if row["mode"] == "linear_spec") == 16


def test_an_adapter_is_of_drafts_alone(nemotron_tiny, copied):
    assert describe(nemotron_tiny).spec.has_draft_adapter
    adapted = describe(nemotron_tiny).geometry
    assert adapted.num_parameters == describe_without(copied).num_parameters + 3 * 4 * (4 * 32 + 64)
    assert adapted.draft_adapter.scale == 4.0


def describe_without(folder):
    """The geometry without the adapter's folder."""
    shutil.rmtree(folder / "linear_spec_lora")
    described = describe(folder)
    assert not described.spec.has_draft_adapter
    assert load_model(folder, described, torch.float32, torch.device("cpu")).blocks[0].attention.adapter is None
    return described.geometry


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("target_modules", ["q_proj"]),
        ("target_modules", ["o_proj", "q_proj"]),
        ("use_dora", True),
        ("use_rslora", True),
        ("rank_pattern", {"layers.0": 8}),
        ("peft_type", "IA3"),
    ],
)
def test_adapters_that_would_be_computed_wrongly_are_refused(copied, key, value):
    path = copied / "linear_spec_lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(LoadError, match=key):
        describe(copied)


@pytest.mark.parametrize("damage", ["gone", "narrow", "more"])
def test_an_adapter_without_its_weights_is_refused(copied, damage):
    path = copied / "linear_spec_lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight"
    match damage:
        case "gone":
            del tensors[name]
        case "narrow":
            tensors[name] = tensors[name][:2].contiguous()
        case "more":
            tensors["base_model.model.encoder.layers.9.self_attn.o_proj.lora_A.weight"] = tensors[name].clone()
    save_file(tensors, path)
    with pytest.raises(LoadError, match="lora_A"):
        load_model(copied, describe(copied), torch.float32, torch.device("cpu"))
    path.unlink()
    with pytest.raises(LoadError, match="adapter_model"):
        load_model(copied, describe(copied), torch.float32, torch.device("cpu"))
