"""How far the probability of `Yes` is the share of truths: Brier score and expected calibration error.

Brier (1950): the mean of (probability - truth)^2. Expected calibration error (Naeini et al., 2015): over bins of equal
width, the mean distance between mean probability and share of truths, weighted by how many questions are in the bin.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import ConfigError
from server.eval.answers import Answerer
from server.eval.questions import Question

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Questions whose probability lies in one tenth."""

    n: int
    probability: float
    """Its mean."""
    share: float
    """Of those whose answer is yes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The figures of one model on its yes/no questions."""

    n: int
    brier: float
    error: float
    bins: tuple[Bin, ...]
    """Those that have questions, from low to high."""

    def as_json(self) -> dict[str, object]:
        bins = [{"n": one.n, "probability": one.probability, "share": one.share} for one in self.bins]
        return {"n": self.n, "brier": self.brier, "calibration_error": self.error, "bins": bins}


async def calibrate(answerer: Answerer, questions: Sequence[Question], concurrency: int) -> Calibration:
    """Asks for the probability of `Yes` of every question. Raises ConfigError if one has another answer."""
    if any(question.is_yes is None for question in questions):
        raise ConfigError("--calibration is for questions that are answered by Yes or No, such as --tasks yesno")
    in_flight = asyncio.Semaphore(concurrency)

    async def judged(question: Question) -> float:
        async with in_flight:
            return yes(await answerer.judge(question))

    probabilities = await asyncio.gather(*map(judged, questions))
    return figures(probabilities, [bool(question.is_yes) for question in questions])


def yes(tokens: Mapping[str, float]) -> float:
    """The probability of yes among yes and no, from those of first tokens by text; even if neither is there."""
    said = {word: sum(p for text, p in tokens.items() if text.strip().lower() == word) for word in ("yes", "no")}
    total = said["yes"] + said["no"]
    return said["yes"] / total if total else 0.5


def figures(probabilities: Sequence[float], truths: Sequence[bool]) -> Calibration:
    """Of at least one question."""
    asked = list(zip(probabilities, truths, strict=True))
    binned: dict[int, list[tuple[float, bool]]] = {}
    for probability, truth in asked:
        binned.setdefault(min(int(probability * BINS), BINS - 1), []).append((probability, truth))
    bins = tuple(
        Bin(
            n=len(those), probability=sum(p for p, _ in those) / len(those), share=sum(t for _, t in those) / len(those)
        )
        for _, those in sorted(binned.items())
    )
    return Calibration(
        n=len(asked),
        brier=sum((probability - truth) ** 2 for probability, truth in asked) / len(asked),
        error=sum(one.n * abs(one.probability - one.share) for one in bins) / len(asked),
        bins=bins,
    )
