"""Counts the codes that are 0 of all that the bundled models write, by model, format and `kv_prune`.

Run as `python -m tests.server.eval.share_of_zeros`. A line for each: per cent of the codes of keys, and of values.
"""

import asyncio
from itertools import product

import torch

from engine import BASIC_TASKS, BUNDLED
from engine.kernels import attention
from server.eval.answerers.answers import Options
from server.eval.answerers.local import running
from server.eval.policy import KVFormat, PolicyPair
from server.eval.questions import from_tasks
from server.eval.run import ask_all

SEED, PER_TASK, AT_ONCE = 20261130, 10, 32
FORMATS = [KVFormat(dtype, prune) for dtype, prune in product(("int8", "fp8"), (0.0, 0.02, 0.05, 0.1, 0.2))]
POLICY = PolicyPair(unmask="threshold", value=0.9)


class Counter:
    """In the place of `attention.write`, which a layer calls for keys and then for values."""

    def __init__(self):
        self.write, self.zeros, self.codes, self.calls = attention.write, [0, 0], [0, 0], 0

    def __call__(self, kept, new, slots, prune):
        self.write(kept, new, slots, prune)
        codes = kept.codes.view(torch.int8)[:, slots]
        self.zeros[self.calls % 2] += int(((codes & 0x7F) == 0).sum())  # e4m3 has a zero below zero as well
        self.codes[self.calls % 2] += codes.numel()
        self.calls += 1


async def shares(model, kv_format):
    """Of codes of keys, and of values, that are 0."""
    questions = from_tasks(list(BASIC_TASKS), SEED, PER_TASK, 0)
    async with running(BUNDLED[model], Options(max_tokens=64, plain=False), AT_ONCE, kv_format) as answerer:
        counter = attention.write = Counter()
        try:
            await ask_all(lambda question: answerer.ask(question, POLICY), questions, AT_ONCE)
        finally:
            attention.write = counter.write
    return [zeros / codes for zeros, codes in zip(counter.zeros, counter.codes, strict=True)]


if __name__ == "__main__":
    for model, kv_format in product(BUNDLED, FORMATS):
        keys, values = asyncio.run(shares(model, kv_format))
        print(f"{model} {kv_format.label}: keys {100 * keys:.1f} %, values {100 * values:.1f} %", flush=True)
