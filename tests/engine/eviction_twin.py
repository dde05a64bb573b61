"""Decoding with `kv_budget`, plainly: dense tensors by position, and a mask of those that are still there.

Nothing moves here, and no page table is read: what is gone is left out of each product.
"""

import numpy as np
import torch

from engine.bench.reference import propose
from engine.kernels.kv.retention import retention
from engine.kernels.products import attention


class Kept:
    """Keys and values of one canvas; rows [first, end) of `rows` see what is kept below each of `horizons`."""

    def __init__(self, model, length):
        config = model.config
        self.keys = torch.full((config.num_layers, config.num_kv_heads, length, config.head_dim), torch.nan)
        self.values = self.keys.clone()
        self.kept = np.ones(length, np.bool_)
        self.queries = [None] * config.num_layers

    def attend(self, layer, q, k, v):
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self.rows], values[:, self.rows] = k.transpose(0, 1), v.transpose(0, 1)
        self.queries[layer] = q
        seen = [np.flatnonzero(self.kept[:horizon]) for horizon in self.horizons]
        each = [attention(q[[n]], keys[:, some], values[:, some]) for n, some in enumerate(seen)]
        return torch.cat(each)

    def evict(self, end, judged, keep, score, weight, sink):
        """Of what is kept before `end`, all but `keep` by the queries of the positions `judged`."""
        candidates = np.flatnonzero(self.kept[:end])
        if score == "recent":
            worth = candidates.astype(float)
        else:
            asks = np.isin(self.rows, judged)
            judged = [*candidates, *judged]
            layers = [
                retention(q[asks], keys[:, judged], len(candidates), weight).mean(dim=0)
                for q, keys in zip(self.queries, self.keys, strict=True)
            ]
            worth = torch.stack(layers).sum(dim=0).numpy()
        best = sorted(range(len(candidates)), key=lambda n: (candidates[n] >= sink, -worth[n], candidates[n]))
        self.kept[candidates[best[keep:]]] = False
        self.keys[:, :, ~self.kept], self.values[:, :, ~self.kept] = torch.nan, torch.nan


def forward(model, context, ids, rows, horizons):
    """Logits of the rows."""
    context.rows, context.horizons = rows, horizons
    rows = torch.from_numpy(rows)
    return model.logits(model(ids[rows], rows, context))


def canvas(prompt, length, spec):
    ids = torch.tensor([*prompt, *[spec.mask_id] * length])
    return ids, np.arange(len(ids)) >= len(prompt)


def fill(ids, masked, targets, logits, mask_id, threshold):
    confidence, tokens = propose(logits, mask_id)
    accepted = confidence >= threshold
    accepted[confidence.argmax()] = True
    ids[targets[accepted.numpy()]] = tokens[accepted]
    masked[targets[accepted.numpy()]] = False


@torch.inference_mode()
def decode_full(model, spec, prompt, *, gen_length, block_length, threshold, budget, score, weight, sink):
    """The `dual` cache: a refresh of what is kept when a block opens, and after it what is too much goes."""
    (ids, masked), shift = canvas(prompt, gen_length, spec), spec.shift
    context = Kept(model, len(ids))
    for start in range(len(prompt), len(ids), block_length):
        end, first = start + block_length, max(start - shift, 0)
        step = 0
        while masked[start:end].any():
            rows = np.arange(first, end) if step else np.flatnonzero(context.kept)
            logits = forward(model, context, ids, rows, [len(ids)] * len(rows))
            targets = start + np.flatnonzero(masked[start:end])
            if not step and context.kept[:start].sum() > budget:
                context.evict(first, np.arange(start, end), budget - (start - first), score, weight, sink)
            fill(ids, masked, targets, logits[np.searchsorted(rows, targets - shift)], spec.mask_id, threshold)
            step += 1
    return ids[len(prompt) :].tolist()


@torch.inference_mode()
def decode_block(model, spec, prompt, *, gen_length, length, threshold, budget, buffer, score, weight, sink):
    """Block by block from the first position on, the prompt's blocks too; after each commit what is too much goes.

    Returns the tokens, and how many positions had keys and values at once.
    """
    ids, masked = canvas(prompt, -(-(len(prompt) + gen_length) // length) * length - len(prompt), spec)
    context, most = Kept(model, len(ids)), 0
    for start in range(0, len(ids), length):
        block, end = np.arange(start, start + length), start + length
        while masked[block].any():
            targets = block[masked[block]]
            logits = forward(model, context, ids, block, [end] * length)
            fill(ids, masked, targets, logits[targets - start], spec.mask_id, threshold)
        forward(model, context, ids, block, [end] * length)
        resident = context.kept[:end].sum()
        most = max(most, resident)
        if resident + length > budget + buffer:
            context.evict(start, block, budget - length, score, weight, sink)
    return ids[len(prompt) :][:gen_length].tolist(), most
