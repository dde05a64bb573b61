"""Whatever a checkpoint's files say: it is served, or refused in one line before memory is taken for it."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine import ConfigError, EngineConfig, LoadError, load
from engine.models import describe
from server import cli
from server.text.tokenizer import Tokenizer

NESTED = "[" * 100_000
BAD_CONFIGS = {
    "text for a number": ({"d_model": "128"}, "d_model is '128'; it should be a valid integer"),
    "a fraction": ({"n_layers": 1.5}, "n_layers is 1.5"),
    "a truth": ({"n_layers": True}, "n_layers is True"),
    "no heads": ({"n_heads": 0}, "n_heads is 0; it should be greater than or equal to 1"),
    "less than none": ({"n_kv_heads": -1}, "n_kv_heads is -1"),
    "1e12 layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; it should be less than or equal to 256"),
    "1e12 positions": ({"max_sequence_length": 10**12}, "max_sequence_length is"),
    "a huge vocabulary": ({"embedding_size": 10**12}, "embedding_size is"),
    "heads that share no row": ({"n_heads": 3, "n_kv_heads": 3}, "3 heads cannot share a row of 64"),
    "odd heads": ({"n_heads": 64, "n_kv_heads": 64}, "heads have 1 numbers"),
    "heads that share no keys": ({"n_kv_heads": 3}, "4 heads cannot share 3 of keys"),
    "no end": ({"eos_token_id": None}, "eos_token_id.0 is None"),
    "an empty list of ends": ({"eos_token_id": []}, r"eos_token_id is \[\]"),
    "an end that is text": ({"eos_token_id": [1, "2"]}, "eos_token_id.1 is '2'"),
    "an end beyond the vocabulary": ({"eos_token_id": [1, 10**9]}, "1000000000 is its mask or ends its answers"),
    "a mask beyond the vocabulary": ({"mask_token_id": 10**9}, "1000000000 is its mask"),
    "a mask below it": ({"mask_token_id": -1}, "mask_token_id is -1"),
    "a mask that ends": ({"mask_token_id": 7, "eos_token_id": 7}, "7 is its mask and ends its answers"),
    "an angle of nothing": ({"rope_theta": 0}, "rope_theta is 0"),
    "no number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    "no names": ({"architectures": 5}, "unknown architecture llada"),
    "names that are none": ({"architectures": [["LLaDAModelLM"]]}, "unknown architecture"),
    "weights for fewer layers": ({"n_layers": 50}, "lacks model.transformer.blocks"),
    "weights for more": ({"n_layers": 1}, "is not part of this architecture"),
    "weights for another width": ({"d_model": 2**20}, r"is \[64\], expected \[1048576\]"),
}


@pytest.fixture
def checkpoint(llada_tiny, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(llada_tiny, tmp_path / "checkpoint")


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr("engine.models._on_device", None)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuses(folder, message, look=None):
    with pytest.raises(LoadError, match=message) as caught:
        (look or (lambda folder: load(EngineConfig(model=str(folder)))))(folder)
    assert "\n" not in str(caught.value), "one line"
    assert len(str(caught.value)) < 600, "it may name all families"


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_config_that_means_nothing(checkpoint, no_memory, kind):
    changes, message = BAD_CONFIGS[kind]
    edit(checkpoint / "config.json", **changes)
    refuses(checkpoint, message)


@pytest.mark.parametrize("text", [NESTED, '{"a":' * 100_000, "[]", "", "\xff", '{"n_layers": 9' + "9" * 10_000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_that_is_no_object(checkpoint, no_memory, name, text):
    (checkpoint / name).write_text(text, encoding="latin-1")
    refuses(checkpoint, "config.json|unknown architecture" if name == "config.json" else name, describe)


@pytest.mark.parametrize(
    "added",
    [None, 5, [5], [{"id": 1}], [{"id": "1", "content": "a"}], [{"id": -1, "content": "a"}], [{"id": 1, "content": 2}]],
)
def test_added_tokens_that_are_none(checkpoint, no_memory, added):
    edit(checkpoint / "tokenizer.json", added_tokens=added)
    refuses(checkpoint, r"tokenizer.json(: | lacks .)added_tokens")


def test_an_end_that_only_the_tokenizer_knows_lies_beyond_the_vocabulary(checkpoint, no_memory):
    edit(checkpoint / "tokenizer.json", added_tokens=[{"id": 10**6, "content": "<|eot_id|>"}])
    refuses(checkpoint, "1000000 is its mask or ends its answers; the vocabulary has")


def test_added_tokens_of_a_slow_tokenizer(dream_tiny, tmp_path, no_memory):
    shutil.copy(dream_tiny / "config.json", tmp_path)
    for decoder in ({"x": {"content": "a"}}, {"5": "a"}, []):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        refuses(tmp_path, "tokenizer_config.json: added_tokens_decoder")


@pytest.mark.parametrize(
    "weight_map",
    [
        [],
        {},
        None,
        "model.safetensors",
        {"a": 5},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "b/model.safetensors"},
        {"a": "model.bin"},
        {"a": "model.safetensors\n"},
    ],
)
def test_an_index_names_files_of_its_folder(checkpoint, no_memory, weight_map):
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuses(checkpoint, "model.safetensors.index.json: weight_map")


def test_an_index_names_files_that_are_there(checkpoint, no_memory):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    refuses(checkpoint, "absent.safetensors cannot be read")
    (checkpoint / "absent.safetensors").mkdir()
    refuses(checkpoint, "absent.safetensors cannot be read")
    index.write_text("{}")
    refuses(checkpoint, "lacks 'weight_map'")


def test_a_file_cut_short(checkpoint, no_memory):
    whole = (checkpoint / "model.safetensors").read_bytes()
    for part in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (checkpoint / "model.safetensors").write_bytes(whole[:part])
        refuses(checkpoint, "model.safetensors cannot be read")


def with_weights(checkpoint, change):
    save_file(
        {name: change(tensor) for name, tensor in load_file(checkpoint / "model.safetensors").items()},
        checkpoint / "model.safetensors",
    )


def test_weights_of_no_kind_for_weights(checkpoint, no_memory):
    with_weights(checkpoint, lambda tensor: tensor.to(torch.int8))
    refuses(checkpoint, "is I8, expected one of")


def test_weights_that_are_no_numbers_are_found_before_anybody_asks(checkpoint):
    with_weights(checkpoint, lambda tensor: tensor * torch.nan)
    refuses(checkpoint, "a first step fails: ArithmeticError: the model's scores are not numbers")


def test_what_a_first_step_raises_is_told_in_a_line(checkpoint, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such product\nat line 5 of a long trace")

    monkeypatch.setattr("engine.models.layers.Transformer.forward", fails)
    refuses(checkpoint, "a first step of 32 rows fails: RuntimeError: no such product$")


def test_the_command_says_so_and_ends(checkpoint, capsys):
    edit(checkpoint / "config.json", n_heads=0)
    assert cli.main(["serve", str(checkpoint), "--port", "0"]) == cli.USAGE_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"unmask: {checkpoint}/config.json: n_heads is 0")


NASTY = [None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, 1e308, "", "x", "1", [], [1], [None], {}]


FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_refused_in_a_line_or_served(llada_tiny, tmp_path, run, submission, name, data):
    refused_or_served(llada_tiny, tmp_path, run, submission, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_refused_in_a_line_or_served_whatever_it_is(llada_tiny, tmp_path, run, submission, name, data):
    refused_or_served(llada_tiny, tmp_path, run, submission, name, data)


def refused_or_served(llada_tiny, tmp_path, run, submission, name, data):
    """One key of a file has some other value: nothing else happens at the start, or to the first request."""
    folder = tmp_path / "any"
    shutil.copytree(llada_tiny, folder, dirs_exist_ok=True)
    key = data.draw(st.sampled_from(sorted(json.loads((folder / name).read_text()))))
    edit(folder / name, **{key: data.draw(st.sampled_from(NASTY))})
    refusal = None
    try:
        engine = load(EngineConfig(model=str(folder), kv_cache_tokens=2048, max_model_len=64))
        tokenizer = Tokenizer.load(folder)
    except (LoadError, ConfigError) as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        return
    [(tokens, *_)] = run(engine, submission(gen_length=4, block_length=4)).values()
    tokenizer.decode(tokens)
    tokenizer.close()
