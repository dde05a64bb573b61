"""The Fast-dLLM v2 family: its checkpoints' layout, its logits, and the plain loop against the published samplers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from engine import LoadError
from engine.models import describe
from engine.models.families.fast_dllm import Config, destinations
from tests.engine.models.transformers_twin import logits_of_transformers
from tests.golden import fast_dllm as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows

SPECIAL = {"<|im_end|>": 151645, "|<MASK>|": 151665}


@pytest.fixture(scope="module")
def checkpoint(fast_dllm_tiny):
    return Checkpoint.load(fast_dllm_tiny)


@pytest.fixture(scope="module")
def rows(fast_dllm_tiny):
    return read_rows(fast_dllm_tiny / "generations.json")


@pytest.fixture
def fast_dllm_7b(published):
    return published("fast-dllm-v2-7b")


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("fast-dllm-v2-1.5b", 1_543_714_304, 28 * 12 + 2), ("fast-dllm-v2-7b", 7_615_616_512, 28 * 12 + 3)],
)
def test_the_published_geometry(published, name, parameters, tensors):
    geometry = Config.read(published(name)).geometry
    assert geometry.num_parameters == parameters, "Qwen2.5's of this size"
    assert (geometry.qk_norm, geometry.qkv_bias) == (False, True)
    names = destinations(geometry)
    assert len(names) == tensors
    assert ("lm_head.weight" in names) == (name == "fast-dllm-v2-7b"), "the smaller one's head is its embedding"


def test_what_decoding_needs_to_know(fast_dllm_7b):
    spec = Config.read(fast_dllm_7b).spec(SPECIAL, [151645, 151643])
    assert (spec.mask_id, spec.shift, spec.vocab_size) == (151665, 1, 152064)
    assert spec.eos_ids == {151645}, "its samplers stop at <|im_end|> alone"
    assert (spec.attention, spec.block_length, spec.strict_threshold) == ("block_causal", 32, True)


def test_the_mask_is_the_tokenizers(fast_dllm_tiny, tmp_path):
    """In no config file, so that a folder without it cannot be decoded."""
    assert describe(fast_dllm_tiny).spec.mask_id == 260
    shutil.copy(fast_dllm_tiny / "config.json", tmp_path)
    with pytest.raises(LoadError, match=r"the tokenizer lacks '\|<MASK>\|'") as caught:
        describe(tmp_path)
    assert str(tmp_path) in str(caught.value)
    added = {"261": {"content": "|<MASK>|"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert describe(tmp_path).spec.mask_id == 261


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", False),
        ("bd_size", 0),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("use_sliding_window", True),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(fast_dllm_7b, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**fast_dllm_7b, key: value})


def test_logits_of_the_published_code(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


@pytest.mark.slow
def test_logits_of_transformers_qwen2(fast_dllm_tiny):
    tensors = load_file(fast_dllm_tiny / "logits.safetensors")
    for number in range(len(tensors) // 3):
        ids, block = tensors[f"input_ids_{number}"], int(tensors[f"block_length_{number}"])
        theirs = logits_of_transformers(fast_dllm_tiny, "Qwen2", ids, block)
        torch.testing.assert_close(theirs, tensors[f"logits_{number}"], atol=1e-4, rtol=0)


def test_the_plain_loop_decodes_as_the_published_samplers(checkpoint, rows):
    some = rather_short(rows, kind)
    assert differences(some, golden.through_plain_loop(checkpoint, some)) == []


def kind(row):
    return row["sampler"], row["block_cache"], row["finish"]


def test_the_rows_cover_both_samplers(rows):
    assert {kind(row) for row in rows} == {
        (sampler, block_cache, finish)
        for sampler in ("generate", "batch_sample")
        for block_cache in (False, True)
        for finish in ("stop", "length")
    }
    assert len(rows) == 95
