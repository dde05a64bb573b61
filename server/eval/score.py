"""Counts answers: one row of figures for each task and policy, and rows pooled over tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from server.eval.answerers.answers import EvalAnswer
from server.eval.policy import WINDOW, PolicyPair
from server.eval.questions import Question
from server.remote import sum_reported

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Sums over the problems of one task under one policy; None if the server does not report it."""

    task: str
    policy: PolicyPair
    n: int
    correct: int
    agreed: int | None
    """Answers that equal those of the policy that this one is compared to."""
    tokens: int | None
    forwards: int | None
    rows: int | None
    seconds: float
    """From the first question to the last answer, with many in flight."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    @property
    def agreement(self) -> float | None:
        return None if self.agreed is None else self.agreed / self.n

    @property
    def tokens_per_forward(self) -> float | None:
        return self.tokens / self.forwards if self.tokens is not None and self.forwards else None

    @property
    def rows_per_token(self) -> float | None:
        return self.rows / self.tokens if self.rows is not None and self.tokens else None

    def as_json(self) -> dict[str, object]:
        low, high = self.interval
        return {
            "task": self.task,
            "cache": self.policy.cache,
            "unmask": self.policy.unmask,
            "parameter": self.policy.parameter,
            "value": self.policy.value,
            "window": dict(zip(WINDOW, self.policy.window, strict=False)),
            "block_length": self.policy.block_length,
            "lookahead": self.policy.lookahead,
            "guidance": self.policy.guidance,
            "kv_dtype": self.policy.kv_format.dtype,
            "kv_prune": self.policy.kv_format.prune,
            "quantization": self.policy.quantization,
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "agreement": self.agreement,
            "tokens_per_forward": self.tokens_per_forward,
            "rows_per_token": self.rows_per_token,
            "tokens": self.tokens,
            "forwards": self.forwards,
            "rows": self.rows,
            "seconds": self.seconds,
        }


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927). Unlike the normal interval, it is also valid near 0 and 1."""
    share, z2 = correct / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def make_row(
    task: str,
    policy: PolicyPair,
    questions: Sequence[Question],
    answers: Sequence[EvalAnswer],
    reference: Sequence[EvalAnswer] | None,
    seconds: float,
) -> Row:
    """The row of one task's answers. `reference`: the answers that they are compared to, if they are."""
    agreed = reference and sum(a.text.strip() == b.text.strip() for a, b in zip(answers, reference, strict=True))
    return Row(
        task=task,
        policy=policy,
        n=len(questions),
        correct=sum(question.check(answer.text) for question, answer in zip(questions, answers, strict=True)),
        agreed=None if reference is None else int(agreed or 0),
        tokens=sum_reported([answer.tokens for answer in answers]),
        forwards=sum_reported([answer.forwards for answer in answers]),
        rows=sum_reported([answer.rows for answer in answers]),
        seconds=seconds,
    )


def pooled(rows: Sequence[Row]) -> Row:
    """One row for all tasks, from rows of the same policy."""
    agreed, tokens = sum_reported([row.agreed for row in rows]), sum_reported([row.tokens for row in rows])
    return Row(
        task="all",
        policy=rows[0].policy,
        n=sum(row.n for row in rows),
        correct=sum(row.correct for row in rows),
        agreed=agreed,
        tokens=tokens,
        forwards=sum_reported([row.forwards for row in rows]),
        rows=sum_reported([row.rows for row in rows]),
        seconds=sum(row.seconds for row in rows),
    )
