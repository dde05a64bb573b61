"""How far the probability of `Yes` is the share of truths: Brier score and expected calibration error.

Brier (1950): the mean of (probability - truth)^2. Expected calibration error (Naeini et al., 2015): over bins of equal
width, the mean distance between mean probability and share of truths, weighted by how many questions are in the bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from engine import ConfigError
from server.eval.answerers.answers import Answerer
from server.eval.questions import Question
from server.eval.run import ask_all

BINS = 10
"""Of equal width, over the probabilities from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The questions whose probability of `Yes` lies in one of the BINS."""

    n: int
    probability: float
    """The mean of their probabilities."""
    share: float
    """The share of them whose answer is yes, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The figures of one model on its yes/no questions."""

    n: int
    brier: float
    """The Brier score, from 0 (right and certain) to 1."""
    calibration_error: float
    """The expected calibration error, from 0 to 1."""
    bins: tuple[Bin, ...]
    """Those that have questions, from low to high."""


async def calibrate(answerer: Answerer, questions: Sequence[Question], concurrency: int) -> Calibration:
    """Asks for the probability of `Yes` of every question, `concurrency` at a time.

    Raises ConfigError if a question has another answer than Yes or No, and what the answerer raises.
    """
    if any(question.is_yes is None for question in questions):
        raise ConfigError("--calibration is for questions that are answered by Yes or No, such as --tasks yesno")
    judged = await ask_all(answerer.judge, questions, concurrency)
    return figures([yes(tokens) for tokens in judged], [bool(question.is_yes) for question in questions])


def yes(tokens: Mapping[str, float]) -> float:
    """The probability of yes among yes and no, from those of first tokens by text; 0.5 if neither is among them."""
    said = {word: sum(p for text, p in tokens.items() if text.strip().lower() == word) for word in ("yes", "no")}
    total = said["yes"] + said["no"]
    return said["yes"] / total if total else 0.5


def figures(probabilities: Sequence[float], truths: Sequence[bool]) -> Calibration:
    """The figures of at least one question: its probability of `Yes`, and whether its answer is yes."""
    asked = list(zip(probabilities, truths, strict=True))
    binned: dict[int, list[tuple[float, bool]]] = {}
    for probability, truth in asked:
        binned.setdefault(min(int(probability * BINS), BINS - 1), []).append((probability, truth))
    bins = tuple(
        Bin(n=len(those), probability=fmean(p for p, _ in those), share=fmean(truth for _, truth in those))
        for _, those in sorted(binned.items())
    )
    return Calibration(
        n=len(asked),
        brier=fmean((probability - truth) ** 2 for probability, truth in asked),
        calibration_error=sum(one.n * abs(one.probability - one.share) for one in bins) / len(asked),
        bins=bins,
    )
