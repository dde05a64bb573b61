"""What makes a bundled model: its geometry, its first weights, its optimisers and their rates."""

from dataclasses import dataclass

import torch
from torch import nn

from engine.demo.training.muon import Muon
from engine.models.layers import Transformer, TransformerConfig

MUON_LR, ADAM_LR, FINAL_LR, WARMUP = 0.02, 2e-3, 0.02, 100
DECAY_FROM = 0.55
"""The share of a run after which the learning rate falls, on a line, to FINAL_LR of what it was."""

OWNER_LAYER, CLUE_LAYER = 8, 9
"""The layers behind which owners and clues are asked for, counted from 0: a clue is found by its owner."""
AUXILIARY_WEIGHT = 0.5
"""What the losses of owners and of clues count beside that of the targets."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes one of the bundled models."""

    block: int | None
    """The block of a block-causal model; None for full attention."""
    steps: int


RECIPES = {"demo": Recipe(block=None, steps=28000), "demo-block": Recipe(block=16, steps=24000)}


def geometry(vocab_size: int, *, qk_norm: bool) -> TransformerConfig:
    """About 3.6 million parameters."""
    return TransformerConfig(
        dim=128,
        num_layers=12,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        ff_dim=512,
        vocab_size=vocab_size,
        max_positions=1024,
        norm_eps=1e-5,
        rope_theta=10000.0,
        qk_norm=qk_norm,
    )


def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Every layer starts as the identity, on embeddings of unit size.

    Small embeddings are drowned by what the first layer adds to them, and then nothing learns to copy a word.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name.endswith(("out.weight", "down.weight")):
            nn.init.zeros_(parameter)
        else:
            std = {"embed": 1.0, "head.weight": 0.02}.get(name, parameter.shape[1] ** -0.5)
            nn.init.normal_(parameter, std=std, generator=generator)


def optimisers(model: Transformer) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms. Their rates are tensors."""
    parts = {"qkv": 3, "gate_up": 2}
    named = {
        name: parameter for name, parameter in model.named_parameters() if "blocks" in name and parameter.ndim == 2
    }
    matrices = [(parameter, parts.get(name.split(".")[-2], 1)) for name, parameter in named.items()]
    others = [parameter for name, parameter in model.named_parameters() if name not in named]
    device = model.embed.device
    muon = Muon(matrices, torch.tensor(MUON_LR, device=device))
    adam = torch.optim.AdamW(
        others,
        torch.tensor(ADAM_LR, device=device),
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
        capturable=device.type == "cuda",
    )
    return muon, adam


def learning_rate(step: int, steps: int) -> float:
    """The factor on both highest rates: a short warm-up, then constant, then a line down."""
    left = max(0.0, 1 - step / steps) / (1 - DECAY_FROM)
    return min(1.0, (step + 1) / WARMUP) * (FINAL_LR + (1 - FINAL_LR) * min(1.0, left))
