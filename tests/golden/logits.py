"""The logits of dense forwards against `logits.safetensors`.

The file holds `input_ids_{i}` [rows] and `logits_{i}` [rows, vocab], and `block_length_{i}` or `block_{i}` [1] where
attention is block-causal. Knows no family.
"""

from collections.abc import Iterator

import torch
from safetensors.torch import load_file

from engine.bench.block_causal import BlockCausalContext
from engine.bench.reference import DenseContext
from tests.golden.checkpoint import Checkpoint

LARGEST_DISTANCE = 1e-4
"""Between a logit and the published one, at most: both are sums in float32, in another order."""


def distances(checkpoint: Checkpoint) -> Iterator[float]:
    """The largest difference of each of the file's forwards."""
    tensors, model = load_file(checkpoint.folder / "logits.safetensors"), checkpoint.model
    for number in range(sum(name.startswith("input_ids_") for name in tensors)):
        ids, expected = tensors[f"input_ids_{number}"], tensors[f"logits_{number}"]
        block = tensors.get(f"block_length_{number}", tensors.get(f"block_{number}"))
        context = DenseContext(model, len(ids)) if block is None else BlockCausalContext(model, len(ids), int(block))
        with torch.inference_mode():
            logits = model.logits(model(ids, torch.arange(len(ids)), context))
        yield float((logits - expected).abs().max())
