"""Requests that hand keys and values on, and what lies in their slots.

Layer 0 is the oracle: what lies there at a position depends on the token at it alone.
"""

import numpy as np
import torch
from torch.nn import functional as F

from engine import DiffusionParams, EngineConfig, SamplingParams, Submission, load
from engine.kernels.kv.formats import read
from tests.engine.faulty import outputs

RNG = np.random.default_rng(0)
TEXT = RNG.integers(1, 200, 48).tolist()
OTHER = RNG.integers(1, 200, 70).tolist()


def engine_of(folder, **config):
    return load(EngineConfig(model=str(folder), **{"relay_tokens": 4096, "page_size": 8, **config}))


def asked(name, prompt, *, max_tokens=8, **fields):
    diffusion = {
        name: fields.pop(name) for name in ("cache", "relay_recompute", "kv_budget", "threshold") if name in fields
    }
    return Submission(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        diffusion=DiffusionParams(block_length=8, **diffusion),
        **{"relay_as": name, **fields},
    )


def ended(engine, *some):
    """As `outputs`, until sources are ready too."""
    made = outputs(engine, *some)
    while engine.has_work:
        assert engine.step() == []
    return made


def tokens(made):
    return [token for output in made for token in output.token_ids]


def canvas_of(engine, one):
    """Prompt and answer."""
    return [*one.prompt_ids, *tokens(ended(engine, one)[one.request_id])]


def first_layer(engine, ids, positions):
    """Keys and values [tokens, kv_heads, head_dim] of these tokens at these positions in layer 0."""
    model = engine.runner.model
    with torch.inference_mode():
        x, at = F.embedding(torch.tensor(ids), model.embed), torch.as_tensor(positions)
        _, keys, values = model.parts.before(model.blocks[0], x, model.cos[at], model.sin[at])
    return keys, values


def stored(engine, slots, layer=0):
    return [
        read(kept, torch.from_numpy(slots), torch.float32).transpose(0, 1) for kept in engine.runner.pool.layer(layer)
    ]
