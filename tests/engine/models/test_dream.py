"""The Dream family: its checkpoints' layout, and every cache policy against the plain loops of a shifted family."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from engine import EngineConfig, LoadError, load
from engine.bench.reference import DenseContext, decode, factor, fixed, threshold
from engine.models import describe, load_model
from engine.models.families.dream import Config, destinations

MASK = 256


@pytest.fixture
def dream_7b(published):
    return published("dream-7b")


@pytest.fixture
def dream(dream_tiny):
    return load(EngineConfig(model=str(dream_tiny)))


def test_logits_of_a_dense_forward(dream_tiny):
    model = load_model(dream_tiny, describe(dream_tiny), torch.float32, torch.device("cpu"))
    tensors = load_file(dream_tiny / "logits.safetensors")
    names = [name for name in tensors if name.startswith("input_ids_")]
    assert names
    for name in names:
        ids, expected = tensors[name], tensors[name.replace("input_ids", "logits")]
        with torch.inference_mode():
            hidden = model(ids, torch.arange(len(ids)), DenseContext(model, len(ids)))
            torch.testing.assert_close(model.logits(hidden), expected, atol=1e-4, rtol=0)


def test_the_published_geometry(dream_7b):
    geometry = Config.read(dream_7b).geometry
    assert geometry.num_parameters == 7_615_616_512
    assert geometry.qkv_bias
    names = destinations(geometry)
    assert len(names) == 28 * 12 + 3, "as many as the published index lists"
    assert "model.layers.27.self_attn.k_proj.bias" in names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


@pytest.mark.parametrize(
    ("special_tokens", "eos_ids"),
    [
        ({}, {151643}),
        ({"<|im_end|>": 151645, "<|mask|>": 151666}, {151643, 151645}),
        ({"<|im_end|>": 151645, "<|dlm_pad|>": 151667}, {151643, 151645, 151667}),
    ],
)
def test_what_ends_an_answer(dream_7b, special_tokens, eos_ids):
    spec = Config.read(dream_7b).spec(special_tokens)
    assert spec.eos_ids == eos_ids
    assert (spec.mask_id, spec.shift, spec.vocab_size) == (151666, 1, 152064)


def test_a_tied_head_has_no_tensor_of_its_own(dream_7b):
    geometry = Config.read({**dream_7b, "tie_word_embeddings": True}).geometry
    assert "lm_head.weight" not in destinations(geometry)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_sliding_window", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("hidden_act", "gelu"),
        ("attention_bias", False),
        ("use_mrope", True),
    ],
)
def test_options_that_would_be_computed_wrongly_are_refused(dream_7b, key, value):
    with pytest.raises(LoadError, match=key):
        Config.read({**dream_7b, key: value})


def test_end_tokens_of_a_tokenizer_without_its_fast_file(dream_tiny, tmp_path):
    """The published checkpoints have `vocab.json`, `merges.txt` and this."""
    shutil.copy(dream_tiny / "config.json", tmp_path)
    added = {"257": {"content": "<|endoftext|>"}, "259": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert describe(tmp_path).spec.eos_ids == {257, 259}


def test_the_chat_template_renders(dream_tiny):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(dream_tiny)
    messages = [{"role": "system", "content": "t5 t6"}, {"role": "user", "content": "t7"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "t5 t6 t7 "
    assert tokenizer.apply_chat_template(messages, return_dict=False) == [5, 6, 7]


def test_it_decodes_as_the_plain_loops_of_a_shifted_family_do(dream, submission, run):
    """25 random requests together; prompts of length 1 and prompts that hold the mask token are among them."""
    rng = random.Random(7)
    rows = []
    for number in range(25):
        block = rng.choice([1, 4, 8, 16])
        prompt = [rng.randrange(260) for _ in range(rng.randint(1, 40))]
        if number % 10 == 0:
            prompt = [rng.choice([9, MASK])]
        if number % 10 == 1:
            prompt[-1] = MASK  # the very row that the first block's first token is read from
        length = block * rng.randint(1, 4)
        cache = ("none", "prefix", "dual")[number % 3]
        rows.append({"prompt": prompt, "gen_length": length, "block_length": block, "cache": cache})
        rows[-1] |= {"unmask": "threshold", "threshold": rng.choice([0.05, 0.2, 0.6]), "ignore_eos": True}
    results = run(dream, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        keys = ("gen_length", "block_length", "cache")
        rule = threshold(row["threshold"])
        expected = decode(
            dream.runner.model, row["prompt"], mask_id=MASK, rule=rule, shift=1, **{key: row[key] for key in keys}
        )
        tokens, _, usage = results[str(number)]
        assert tokens == expected.tokens, row
        assert (usage.forwards, usage.rows_computed) == (expected.forwards, expected.rows), row


def test_every_cache_and_rule_in_one_batch(dream, submission, run):
    rng = random.Random(8)
    rows = [
        {"prompt": [rng.randrange(256) for _ in range(rng.randint(1, 30))], "cache": cache, "unmask": unmask}
        | {"gen_length": 24, "block_length": 8, "threshold": 0.2, "factor": 2.0, "ignore_eos": True}
        for cache in ("none", "prefix", "dual")
        for unmask in ("threshold", "fixed", "factor")
    ]
    results = run(dream, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        rule = {"threshold": threshold(0.2), "fixed": fixed(8, 8), "factor": factor(2.0)}[row["unmask"]]
        keys = ("gen_length", "block_length", "cache")
        expected = decode(
            dream.runner.model, row["prompt"], mask_id=MASK, rule=rule, shift=1, **{key: row[key] for key in keys}
        )
        assert results[str(number)][0] == expected.tokens, row


def test_the_shift_is_data(dream, submission, run):
    """The same weights read without the shift say something else: nothing but the spec carries it."""
    request = dream.new_request(submission(gen_length=32, block_length=8))
    assert request.spec.shift == 1
    shifted, _, _ = run(dream, submission(gen_length=32, block_length=8))["r"]
    unshifted = decode(
        dream.runner.model,
        [5, 6, 7],
        gen_length=32,
        block_length=8,
        mask_id=MASK,
        cache="dual",
        rule=threshold(0.9),
    )
    assert shifted != unshifted.tokens
