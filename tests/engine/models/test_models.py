"""Checkpoints: what loads, and how what does not load says so."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from engine import EngineConfig, LoadError, load
from engine.models import describe, load_model
from engine.models.families.llada import Config
from tests.engine.toys import TOY


@pytest.fixture
def checkpoint(llada_tiny, tmp_path):
    """A copy that a test may break."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(llada_tiny / name, tmp_path / name)
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def refuses(folder, message):
    with pytest.raises(LoadError, match=message) as caught:
        load(EngineConfig(model=str(folder)))
    assert "\n" not in str(caught.value), "one line"


def test_the_published_geometry(published):
    config = published("llada-8b")
    geometry = Config.read(config).geometry
    assert geometry.num_parameters == 8_015_581_184
    spec = Config.read(config).spec({"<|eot_id|>": 126348})
    assert (spec.mask_id, spec.eos_ids) == (126336, {126081, 126348})
    assert (spec.max_model_len, spec.shift) == (4096, 0)


def test_shards_with_an_index_load_like_one_file(checkpoint, llada_tiny):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, checkpoint / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    seen = []
    one, many = (
        load_model(folder, describe(folder), torch.float32, torch.device("cpu"), lambda *done: seen.append(done))
        for folder in (llada_tiny, checkpoint)
    )
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, many.get_parameter(name))
    files = [llada_tiny / "model.safetensors"], [checkpoint / shard for shard in shards]
    totals = [sum(file.stat().st_size for file in each) for each in files]
    assert [done for done in seen if done[0] == done[1]] == [(total, total) for total in totals]
    assert len(seen) == 2 * (len(names) + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_convert_on_the_way(llada_tiny, dtype):
    model = load_model(llada_tiny, describe(llada_tiny), dtype, torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.cos.dtype == torch.float32, "rotation stays in float32"


def test_a_missing_folder(tmp_path):
    refuses(tmp_path / "nowhere", "no such folder")


def test_a_hub_id_that_the_hub_does_not_give(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuses("nobody/nothing", "nobody/nothing: no such folder, and the hub does not give it")


@pytest.mark.parametrize("model", ["gpt2", "owner/na--me", "owner/..", "a/b/c"])
def test_what_is_no_hub_id(model):
    refuses(model, "no such folder, and not a hub id of the form owner/name")


def test_a_file_is_no_checkpoint(llada_tiny):
    refuses(llada_tiny / "config.json", "is a file, not the folder of a checkpoint")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (GatedRepoError, "its owner wants its terms accepted"),
        (RepositoryNotFoundError, "it has none of this name, or a private one, which needs `hf auth login`"),
        (RevisionNotFoundError, "it has no revision v2"),
        (LocalEntryNotFoundError, r"without a network give a folder, or an id that was downloaded before"),
        (PermissionError, "denied"),
    ],
)
def test_why_the_hub_does_not_give_a_model(monkeypatch, kind, remedy):
    error = kind.__new__(kind)
    error.args = ("denied\nand more",)

    def download(*_, **__):
        raise error

    monkeypatch.setattr("engine.models.weights.snapshot_download", download)
    with pytest.raises(LoadError, match=remedy) as told:
        load(EngineConfig(model="owner/name", revision="v2"))
    assert "known families: llada" in str(told.value)


def test_no_weights_are_fetched_of_a_model_that_cannot_be_served(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    asked = []

    def download(_, *, revision, allow_patterns):
        asked.extend(allow_patterns)
        return tmp_path

    monkeypatch.setattr("engine.models.weights.snapshot_download", download)
    with pytest.raises(LoadError, match="unknown architecture gpt2"):
        load(EngineConfig(model="openai-community/gpt2"))
    assert asked
    assert "*.safetensors" not in asked


def test_a_folder_without_config(tmp_path):
    refuses(tmp_path, "has no config.json")


def test_a_config_that_is_no_json(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refuses(checkpoint, "cannot be read as JSON")


def test_an_unknown_architecture_lists_the_known(checkpoint):
    edit(checkpoint, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    refuses(
        checkpoint,
        r"unknown architecture GPT2LMHeadModel; known families: llada \(LLaDAModelLM\), Dream \(DreamModel\)",
    )


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("SDARMoeV2ForCausalLM", "SDARMoeForCausalLM"),
        ("LLaDA3MoeModelLM", "LLaDA2MoeModelLM"),
        ("DreamModel2", "DreamModel"),
    ],
)
def test_one_that_is_nearly_known_names_the_nearest(checkpoint, architecture, nearest):
    edit(checkpoint, architectures=[architecture])
    refuses(checkpoint, f"unknown architecture {architecture}; known families: .*; the nearest is {nearest}$")


def test_a_config_with_a_gap(checkpoint):
    edit(checkpoint, n_layers=None)
    refuses(checkpoint, "lacks 'n_layers'")


def test_an_option_that_llada_does_not_use(checkpoint):
    edit(checkpoint, alibi=True)
    refuses(checkpoint, "alibi is True")


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refuses(checkpoint, "has no model.safetensors")


def test_a_broken_file(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not a checkpoint")
    refuses(checkpoint, "cannot be read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.transformer.blocks.1.k_proj.weight"), "lacks model.transformer.blocks.1.k_proj.weight"),
        (lambda t: t.update({"model.transformer.ln_f.weight": torch.ones(63)}), r"is \[63\], expected \[64\]"),
        (lambda t: t.update({"model.transformer.extra": torch.ones(1)}), "'model.transformer.extra' is not part"),
    ],
)
def test_wrong_tensors(checkpoint, change, message):
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")
    refuses(checkpoint, message)


@pytest.mark.parametrize(("tied", "bias", "norms"), [(False, False, False), (True, True, False), (False, False, True)])
def test_parameters_are_counted_as_they_are(tied, bias, norms):
    from engine.models import new_model

    geometry = replace(TOY, num_kv_heads=2, qkv_bias=bias, qk_norm=norms, tied_head=tied)
    model = new_model(geometry, torch.float32, torch.device("cpu"))
    assert sum(parameter.numel() for parameter in model.parameters()) == geometry.num_parameters
