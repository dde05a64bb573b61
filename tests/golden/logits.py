"""The logits of dense forwards against `logits.safetensors`.

The file holds `input_ids_{i}` [rows] and `logits_{i}` [rows, vocab], and `block_length_{i}` or `block_{i}` [1] where
attention is block-causal; or, of a model that commits causally, `prompt_{i}`, `block_{i}`, `filled_{i}` and
`next_block_{i}` [rows], and the logits of what is done with them one after the other.
With `canvas_{i}` [canvas] the logits are of a noised block behind these rows, perhaps
conditioned by `self_conditioning_logits_{i}` [canvas, vocab]. Knows no family.
"""

from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.bench.block_causal import BlockCausalContext
from engine.bench.causal_commit import CommittedSequence
from engine.bench.noised import NoisedContext
from engine.bench.reference import DenseContext
from tests.golden.checkpoint import Checkpoint

LARGEST_DISTANCE = 1e-4
"""Between a logit and the published one, at most: both are sums in float32, in another order."""


def distances(checkpoint: Checkpoint) -> Iterator[float]:
    """The largest difference of each of the file's forwards."""
    tensors, model = load_file(checkpoint.folder / "logits.safetensors"), checkpoint.model
    if "prompt_0" in tensors:
        yield from _committed_distances(checkpoint, tensors)
        return
    for number in range(sum(name.startswith("input_ids_") for name in tensors)):
        ids, expected = tensors[f"input_ids_{number}"], tensors[f"logits_{number}"]
        block = tensors.get(f"block_length_{number}", tensors.get(f"block_{number}"))
        with torch.inference_mode():
            if (canvas := tensors.get(f"canvas_{number}")) is None:
                length = len(ids)
                context = (
                    DenseContext(model, length) if block is None else BlockCausalContext(model, length, int(block))
                )
                logits = model.logits(model(ids, torch.arange(length), context))
            else:
                behind = NoisedContext(model)
                behind.read(ids.tolist())
                logits = behind.logits(canvas, tensors.get(f"self_conditioning_logits_{number}"))
        yield float((logits - expected).abs().max())


def _committed_distances(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Iterator[float]:
    """A prompt is committed, a block looked at and committed, the next one looked at, with and without the adapter."""
    for number in range(sum(name.startswith("prompt_") for name in tensors)):
        kinds = ("prompt", "block", "filled", "next_block")
        prompt, block, filled, after = (tensors[f"{kind}_{number}"].tolist() for kind in kinds)
        sequence = CommittedSequence(checkpoint.model)
        with torch.inference_mode():
            made = {
                "causal": sequence.append(prompt),
                "denoise": sequence.look(block),
                "commit": sequence.append(filled),
                "next_denoise": sequence.look(after),
                "next_draft_with_adapter": sequence.look(after, is_adapted=True),
                "bidirectional": CommittedSequence(checkpoint.model).look([*prompt, *block]),
            }
        yield from (float((logits - tensors[f"{name}_{number}"]).abs().max()) for name, logits in made.items())
