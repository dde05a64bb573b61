"""Training rows: problems in chat, question and bare form, solved examples before some of them, EOS to the end.

What a row is masked with, and why, is decided here; the model and the optimiser are `engine.demo.train`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo.build_tokenizer import BOS, END_HEADER, EOS, EOT, HEADER, MASK, token_id
from engine.demo.tasks import Problem, Split, stream, sums

BLOCK = 32
"""The block length that the masks imitate; decoding goes by the same."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of one length, so that a batch needs no padding but the EOS tail that it learns to write."""

    length: int
    share: float
    """How often a batch is drawn from this bucket."""
    weights: dict[str, float]
    """How often each family occurs in it."""
    max_shots: int = 0
    """Solved examples before the question, at most."""


BUCKETS = (
    Bucket(40, 0.40, {"word": 40, "sort": 40, "reverse": 8, "facts": 12}),
    Bucket(80, 0.42, {"word": 52, "sort": 15, "reverse": 4, "facts": 5, "story": 24}),
    Bucket(192, 0.18, {"word": 35, "sort": 20, "reverse": 10, "facts": 15, "story": 20}, max_shots=4),
)
TOKENS_PER_BATCH = 3072
SUMS_SHARE = 0.12
"""How often a batch is nothing but sums: stories alone show too few of them to learn the table."""
SUMS_PER_ROW = 8
SUM_LENGTH = 6
"""Tokens of `7 + 8 = 15.`"""


@dataclass(frozen=True, slots=True)
class Batch:
    """clean and noisy ids [rows, length]; the model predicts `clean` where `masked`."""

    clean: Tensor
    noisy: Tensor
    masked: Tensor


def chat_form(problem: Problem, shots: Sequence[Problem] = ()) -> tuple[str, str]:
    """What the chat template renders for the prompt, and the answer that follows."""
    turns = [turn for shot in shots for turn in (("user", shot.prompt), ("assistant", shot.answer))]
    text = "".join(
        f"{HEADER}{role}{END_HEADER}\n\n{content}{EOT}" for role, content in [*turns, ("user", problem.prompt)]
    )
    return f"{BOS}{text}{HEADER}assistant{END_HEADER}\n\n", problem.answer


def question_form(problem: Problem, shots: Sequence[Problem] = ()) -> tuple[str, str]:
    """The plain form of the few-shot literature."""
    solved = "".join(f"Question: {shot.prompt}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{solved}Question: {problem.prompt}\nAnswer:", f" {problem.answer}"


def bare_form(problem: Problem, shots: Sequence[Problem] = ()) -> tuple[str, str]:
    """The prompt as a user of the completions API may type it."""
    solved = "".join(f"{shot.prompt} {shot.answer}\n" for shot in shots)
    return f"{solved}{problem.prompt}", f" {problem.answer}"


Form = Callable[[Problem, Sequence[Problem]], tuple[str, str]]
FORMS: tuple[Form, ...] = (chat_form, question_form, bare_form)
FORM_WEIGHTS = (50, 30, 20)


class Sampler:
    """Draws the batch of a step from (seed, step) alone, so a resumed run sees what an unbroken one would."""

    def __init__(self, tokenizer: Tokenizer, seed: int, split: Split = "train") -> None:
        self.tokenizer, self.seed, self.split = tokenizer, seed, split
        self.eos, self.mask = token_id(tokenizer, EOS), token_id(tokenizer, MASK)

    def batch(self, step: int) -> Batch:
        rng = Random(f"{self.seed}/{step}")
        if rng.random() < SUMS_SHARE:
            return self._sums(rng)
        bucket = rng.choices(BUCKETS, [bucket.share for bucket in BUCKETS])[0]
        rows = [self._row(rng, bucket) for _ in range(TOKENS_PER_BATCH // bucket.length)]
        clean = torch.full((len(rows), bucket.length), self.eos)
        for row, (prompt, answer) in enumerate(rows):
            ids = torch.tensor(prompt + answer)
            clean[row, : len(ids)] = ids
        masked = _masks(torch.tensor([len(prompt) for prompt, _ in rows]), bucket.length, rng.getrandbits(60))
        return Batch(clean, torch.where(masked, self.mask, clean), masked)

    def _sums(self, rng: Random) -> Batch:
        """Rows of sums with only their results masked: there is nothing to copy them from."""
        text = [f" {sums(rng, SUMS_PER_ROW)}" for _ in range(TOKENS_PER_BATCH // (SUMS_PER_ROW * SUM_LENGTH))]
        clean = torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(text)])
        masked = (torch.arange(clean.shape[1]) % SUM_LENGTH == SUM_LENGTH - 2).expand(clean.shape)
        return Batch(clean, torch.where(masked, self.mask, clean), masked)

    def _row(self, rng: Random, bucket: Bucket) -> tuple[list[int], list[int]]:
        """Prompt and answer ids that leave room for at least one EOS."""
        while True:
            task = rng.choices(list(bucket.weights), list(bucket.weights.values()))[0]
            form = rng.choices(FORMS, FORM_WEIGHTS)[0]
            problem, *shots = islice(stream(task, rng, self.split), 1 + rng.randint(0, bucket.max_shots))
            prompt, answer = (self.tokenizer.encode(text).ids for text in form(problem, shots))
            if len(prompt) + len(answer) < bucket.length:
                return prompt, answer


def _masks(prompt_lengths: Tensor, length: int, seed: int) -> Tensor:
    """Which positions [rows, length] are masked, at least one a row.

    Each row is masked in one of four ways: its answer at a uniform ratio, as LLaDA is tuned; all of it at a uniform
    ratio, which teaches copying; its answer from some word on, which teaches working step by step with nothing ahead to
    copy from; or as block decoding leaves it, clean before the open block and all masks after.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(prompt_lengths)
    ratio, way, cut, opened = torch.rand(4, rows, 1, generator=generator)
    drawn = torch.rand(rows, length, generator=generator) < ratio
    place = torch.arange(length) - prompt_lengths[:, None]  # negative in the prompt
    in_answer = place >= 0
    block = place.div(BLOCK, rounding_mode="floor")
    open_block = (opened * block[:, -1:].add(1).clamp(max=2)).long()  # every answer ends in its second block
    ways = (
        (0.40, in_answer & drawn),
        (0.30, drawn),
        (0.20, place >= (cut * BLOCK).long()),
        (0.10, (in_answer & (block == open_block) & drawn) | (block > open_block)),
    )
    masked, below = torch.zeros_like(drawn), 0.0
    for share, ones in ways:
        masked |= ones & (way >= below) & (way < below + share)
        below += share
    return masked | (~masked.any(dim=1, keepdim=True) & in_answer)
