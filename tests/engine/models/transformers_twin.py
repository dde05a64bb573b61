"""Checkpoints in Qwen's layout through transformers' own models, under a block-causal mask that is written out."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor


def logits_of_transformers(
    folder: Path,
    kind: str,
    ids: Tensor,
    block: int,
    weights: dict[str, Tensor] | None = None,
) -> Tensor:
    """ids [rows] -> [rows, vocab], each row seeing all rows up to the end of its block of `block` tokens.

    `kind` is what their classes' names begin with: what is in them takes seconds to import, and is used by few.
    `weights` are the checkpoint's under the names that transformers has for them, where these differ.
    """
    values = json.loads((folder / "config.json").read_text())
    theirs = ("architectures", "auto_map", "model_type", "attn_implementation")
    config_class, model_class = (getattr(transformers, f"{kind}{part}") for part in ("Config", "ForCausalLM"))
    config = config_class.from_dict({key: value for key, value in values.items() if key not in theirs})
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    model.load_state_dict(weights or load_file(folder / "model.safetensors"))
    blocks = torch.arange(len(ids)) // block
    seen = blocks <= blocks[:, None]
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return model(ids[None], attention_mask=mask[None, None], use_cache=False).logits[0]
