"""Runs every task under every policy, with many questions in flight, and the exact decode once for each task."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from engine import UnmaskError
from server.eval.answers import Answerer, EvalAnswer
from server.eval.policy import PolicyPair
from server.eval.questions import Question
from server.eval.score import Row, make_row

Answered = TypeVar("Answered")

OnProgress = Callable[[str, int], None]
"""Called with a description (empty: unchanged) and the number of new answers."""


async def evaluate(
    answerer: Answerer,
    questions: Sequence[Question],
    policies: Sequence[PolicyPair],
    exact: PolicyPair | None,
    concurrency: int,
    progress: OnProgress,
) -> list[Row]:
    """Rows by task, then policy. Without an `exact` policy, `agreed` is None. Raises what the answerer raises."""
    rows = []
    for task in dict.fromkeys(question.task for question in questions):
        asked = [question for question in questions if question.task == task]
        runs: dict[PolicyPair, tuple[list[EvalAnswer], float]] = {}
        for policy in dict.fromkeys([*([exact] if exact else []), *policies]):
            progress(f"{task}: {policy.cache_label}, {policy.label}", 0)
            start = time.perf_counter()
            answers = await ask_all(partial(_ask, answerer, policy, progress), asked, concurrency)
            runs[policy] = answers, time.perf_counter() - start
        reference = runs[exact][0] if exact else None
        rows += [make_row(task, policy, asked, runs[policy][0], reference, runs[policy][1]) for policy in policies]
    return rows


def num_answers(questions: Sequence[Question], policies: Iterable[PolicyPair], exact: PolicyPair | None) -> int:
    """How many answers `evaluate` will wait for."""
    return len(questions) * len({*policies, *([exact] if exact else [])})


async def _ask(answerer: Answerer, policy: PolicyPair, progress: OnProgress, question: Question) -> EvalAnswer:
    answer = await answerer.ask(question, policy)
    progress("", 1)
    return answer


async def ask_all(
    ask: Callable[[Question], Awaitable[Answered]], questions: Sequence[Question], concurrency: int
) -> list[Answered]:
    """The answers, in the order of the questions. The first UnmaskError cancels the others and is raised."""
    in_flight = asyncio.Semaphore(concurrency)

    async def answered(question: Question) -> Answered:
        async with in_flight:
            return await ask(question)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(question)) for question in questions]
    except* UnmaskError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
