"""Rows of DiffusionGemma's sampler through its loop in `engine.bench.noised`, with the draws that they define."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.noised import decode_noised
from engine.unmask.policies import UNMASKS
from engine.unmask.renoise import Renoise
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop

ASKED = (
    "max_denoising_steps",
    "entropy_bound",
    "t_min",
    "t_max",
    "stability_threshold",
    "confidence_threshold",
)


def golden_uniform(seed, *counters):
    """In [0, 1): the rows' own hash of a seed and counters, one of which may be an array. Wraps at 64 bits."""
    state = np.array([seed], np.int64).astype(np.uint64)
    for counter in counters:
        state = _mix(state ^ np.asarray(counter, np.int64).astype(np.uint64))
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z):
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class HashDraws:
    """Numbers of `golden_uniform`: stream 1 are any tokens, stream 2 chooses among cumulated probabilities."""

    def __init__(self, seed: int, vocab: int) -> None:
        self._seed, self._vocab = seed, vocab

    def tokens(self, block: int, step: int, length: int) -> Tensor:
        drawn = golden_uniform(self._seed, 1, block, step, np.arange(length))
        return torch.from_numpy((drawn * self._vocab).astype(np.int64))

    def samples(self, block: int, step: int, probabilities: Tensor) -> Tensor:
        drawn = torch.from_numpy(golden_uniform(self._seed, 2, block, step, np.arange(len(probabilities))))
        below = probabilities.double().cumsum(dim=-1) <= drawn.unsqueeze(-1)
        return below.sum(dim=-1).clamp(max=self._vocab - 1)


class TorchDraws:
    """Those of torch's own generator, in the order in which the published sampler asks for them."""

    def __init__(self, seed: int, vocab: int) -> None:
        self._generator, self._vocab = torch.Generator().manual_seed(seed), vocab

    def tokens(self, block: int, step: int, length: int) -> Tensor:
        return torch.randint(0, self._vocab, (1, length), generator=self._generator)[0]

    def samples(self, block: int, step: int, probabilities: Tensor) -> Tensor:
        return torch.multinomial(probabilities, 1, generator=self._generator).squeeze(-1)


def takes(row: Row) -> bool:
    """Rows of torch's generator depend on the order of all draws: the plain loop has that order, the engine has none.

    `tests/engine/models/test_diffusion_gemma.py` holds the loop against them.
    """
    return row["noise"] == "hash"


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    spec = checkpoint.spec
    for row in rows:
        made = decode_noised(
            checkpoint.model,
            row["prompt"],
            max_new_tokens=row["max_new_tokens"],
            block_length=spec.block_length,
            draws=(HashDraws if row["noise"] == "hash" else TorchDraws)(row["seed"], spec.vocab_size),
            end_ids=spec.eos_ids,
            pad_id=checkpoint.pad_id,
            **{key: row[key] for key in ASKED},
        )
        yield {"output": made.tokens, "canvas_steps": made.steps, "nfe": sum(made.steps)}


@contextmanager
def golden_draws() -> Iterator[None]:
    """The engine with the rows' hash in place of its own."""
    own = UNMASKS["renoise"]
    UNMASKS["renoise"] = Renoise(golden_uniform)
    yield
    UNMASKS["renoise"] = own


def asked(row: Row, name: str) -> Submission:
    """For whole blocks, as the published sampler decodes them."""
    block = len(row["output"]) // len(row["canvas_steps"])
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=-(-row["max_new_tokens"] // block) * block, seed=row["seed"]),
        diffusion=DiffusionParams(unmask="renoise", **{key: row[key] for key in ASKED}),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    return {"output": cut_at_stop(row, spec.eos_ids), "forwards": row["nfe"]}
