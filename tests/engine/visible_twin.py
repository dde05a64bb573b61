"""Decoding with `lookahead`, plainly: dense tensors by position, of which rows see those that are visible now."""

import numpy as np
import torch

from engine.bench.reference import propose
from engine.kernels.products import attention


class Visible:
    """Keys and values of one canvas; `rows` are replaced, and all of them see the positions below `end`."""

    def __init__(self, model, length):
        config = model.config
        self.keys = torch.zeros(config.num_layers, config.num_kv_heads, length, config.head_dim)
        self.values = torch.zeros_like(self.keys)
        self.rows, self.end = torch.empty(0, dtype=torch.int64), 0

    def attend(self, layer, q, k, v):
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self.rows], values[:, self.rows] = k.transpose(0, 1), v.transpose(0, 1)
        return attention(q, keys[:, : self.end], values[:, : self.end])


@torch.inference_mode()
def decode(model, spec, prompt, *, gen_length, block_length, cache, rule, lookahead, refresh_before=32):
    """-> (tokens, forwards, rows), greedily; what is beyond a block and `lookahead` is not there while it is open."""
    begin, length, shift = len(prompt), len(prompt) + gen_length, spec.shift
    ids = torch.tensor([*prompt, *[spec.mask_id] * gen_length])
    masked = np.arange(length) >= begin
    context, decoded, fresh, forwards, num_rows = Visible(model, length), [], 0, 0, 0
    for start in range(begin, length, block_length):
        end = start + block_length
        first, context.end = max(start - shift, 0), min(end + lookahead, length)
        step = 0
        while masked[start:end].any():
            targets = start + np.flatnonzero(masked[start:end])
            sources = np.maximum(targets - shift, 0)
            if cache == "none" or (step == 0 and (start == begin or cache in ("prefix", "dual"))):
                rows = np.arange(context.end)
            elif cache == "prefix":
                rows = np.arange(first, context.end)
            elif step == 0:
                rows = {*range(max(first - refresh_before, 0), end), *decoded, *range(fresh, context.end)}
            elif cache == "delayed":
                rows = {*targets, *sources, *decoded}
            else:
                rows = np.arange(first, end)
            rows = np.array(sorted(rows))
            context.rows = torch.from_numpy(rows)
            logits = model.logits(model(ids[context.rows], context.rows, context))
            confidence, tokens = propose(logits[np.searchsorted(rows, sources)], spec.mask_id)
            accepted = rule(confidence, step)
            decoded = targets[accepted.numpy()]
            ids[decoded], masked[decoded] = tokens[accepted], False
            forwards, num_rows, step = forwards + 1, num_rows + len(rows), step + 1
        fresh = context.end
    return ids[begin:].tolist(), forwards, num_rows
