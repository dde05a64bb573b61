"""A checkpoint in several files: bytes are told as they are read, and nothing is held beside the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models import describe, load_model, new_model

CHILD = """
import re, sys, torch
from pathlib import Path
from engine.models import describe, load_model

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

folder, most, before = Path(sys.argv[1]), 0.0, held()
def progress(done, total):
    global most
    most = max(most, held() - before)
model = load_model(folder, describe(folder), torch.float32, torch.device("cpu"), progress)
print(most, sum(parameter.nbytes for parameter in model.parameters()) / 2**20)
"""
WIDER = {
    "d_model": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "mlp_hidden_size": 1536,
    "max_sequence_length": 64,
}


def sharded(folder, config, tensors, count):
    """The same checkpoint in so many files."""
    names = sorted(tensors)
    files = {name: f"model-{number % count + 1:05}-of-{count:05}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_bytes_are_told_as_they_are_read(llada_tiny, tmp_path):
    tensors = load_file(llada_tiny / "model.safetensors")
    folder = sharded(tmp_path, json.loads((llada_tiny / "config.json").read_text()), tensors, 3)
    told = []
    model = load_model(folder, describe(folder), torch.float32, torch.device("cpu"), lambda *now: told.append(now))
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    done, totals = zip(*told, strict=True)
    assert set(totals) == {files}
    assert list(done) == sorted(done)
    assert len(done) == len(tensors) + 1
    assert done[-2] == sum(tensor.nbytes for tensor in tensors.values())
    assert done[-1] == files
    whole = load_model(llada_tiny, describe(llada_tiny), torch.float32, torch.device("cpu"))
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds itself")
def test_nothing_is_held_beside_the_model(llada_tiny, tmp_path):
    """Of its own memory, to which pages of mapped files do not count; the largest tensor is 3 MiB, a file 15."""
    config = {**json.loads((llada_tiny / "config.json").read_text()), **WIDER}
    (tmp_path / "config.json").write_text(json.dumps(config))
    description = describe(tmp_path)
    model = new_model(description.geometry, torch.bfloat16, torch.device("cpu"))
    parameters = dict(model.named_parameters())
    tensors = {
        name: torch.zeros_like(place.within(parameters))
        for name, place in description.family.destinations(description.geometry).items()
    }
    folder = sharded(tmp_path, config, tensors, 4)
    printed = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    most, size = map(float, printed.split())
    assert size > 80
    assert most < size + 3
