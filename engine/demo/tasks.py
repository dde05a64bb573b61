"""The families of problems that the bundled models are trained for, each with its own exact check.

Pure Python, no torch: benchmarks and tests import it too. Whether a problem is for training or held out is decided by
a hash of what is asked, so the two never meet, whatever the seeds.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Literal
from zlib import crc32

from engine.demo.families.basics import facts, reverse, sort, story, sum_, tale, word
from engine.demo.families.forms import form, value
from engine.demo.families.judgements import choice, score, yesno
from engine.demo.families.problem import Problem
from engine.demo.families.talk import greet, other
from engine.demo.families.tools import tool
from engine.demo.families.turns import turn

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 10
"""One problem in this many is never trained on."""

TASKS: dict[str, Callable[[Random], Problem]] = {
    "word": word,
    "sort": sort,
    "reverse": reverse,
    "facts": facts,
    "story": story,
    "sum": sum_,
    "tale": tale,
    "turn": turn,
    "greet": greet,
    "other": other,
    "form": form,
    "value": value,
    "tool": tool,
    "yesno": yesno,
    "choice": choice,
    "score": score,
}

BASIC = ("word", "sort", "reverse", "facts", "story")
"""The families that the models were first trained for."""


def split_of(asked: str) -> Split:
    """Where a problem belongs, from its `key` alone."""
    return "train" if crc32(asked.encode()) % HELD_OUT_SHARE else "held_out"


def stream(task: str, rng: Random, split: Split = "held_out") -> Iterator[Problem]:
    """An endless stream of one family's problems of one split."""
    while True:
        problem = TASKS[task](rng)
        if split_of(problem.key) == split:
            yield problem


def problems(task: str, seed: int, n: int, split: Split = "held_out") -> list[Problem]:
    """`n` problems of one family, the same for the same seed."""
    fresh = stream(task, Random(f"{split}/{task}/{seed}"), split)
    return [next(fresh) for _ in range(n)]


def examples(problem: Problem, rng: Random, split: Split = "train") -> Iterator[Problem]:
    """An endless stream of problems that may stand solved before this one: of its family, with the same tools."""
    wanted = _tool_names(problem)
    return (other for other in stream(problem.task, rng, split) if _tool_names(other) == wanted)


def solved(problem: Problem, seed: int, n: int) -> list[Problem]:
    """`n` training problems to stand solved before this one, the same for the same seed."""
    return list(islice(examples(problem, Random(f"train/{problem.task}/{seed}")), n))


def _tool_names(problem: Problem) -> set[str]:
    return {json.loads(tool)["function"]["name"] for tool in problem.tools}
