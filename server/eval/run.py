"""Runs every task under every policy, with many questions in flight, and once under each that others are held to."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from engine import Quantization, UnmaskError
from server.eval.answerers.answers import Answerer, EvalAnswer
from server.eval.policy import KVFormat, PolicyPair
from server.eval.questions import Question
from server.eval.score import Row, make_row

Answered = TypeVar("Answered")

OnProgress = Callable[[str, int], None]
"""Called with a description (empty: unchanged) and the number of new answers."""


Answerers = Callable[[KVFormat, Quantization], AbstractAsyncContextManager[Answerer]]
"""What answers, by how it stores keys and values, and weights, as `PolicyPair` has them; one is open at a time."""


async def evaluate(
    answerers: Answerers,
    questions: Sequence[Question],
    policies: Sequence[PolicyPair],
    references: Mapping[PolicyPair, PolicyPair],
    concurrency: int,
    progress: OnProgress,
) -> list[Row]:
    """Rows by task, then policy. Raises what the answerer raises.

    `references`: the policies that others are compared to, by these; `agreed` is None for policies without one.
    """
    tasks: dict[str, list[Question]] = {}
    for question in questions:
        tasks.setdefault(question.task, []).append(question)
    runs: dict[tuple[str, PolicyPair], tuple[list[EvalAnswer], float]] = {}
    needed = dict.fromkeys([*references.values(), *policies])
    for formats in dict.fromkeys((policy.kv_format, policy.quantization) for policy in needed):
        async with answerers(*formats) as answerer:
            for task, asked in tasks.items():
                for policy in (one for one in needed if (one.kv_format, one.quantization) == formats):
                    progress(f"{task}: {policy.cache_label}, {policy.label}", 0)
                    start = time.perf_counter()
                    answers = await ask_all(partial(_ask, answerer, policy, progress), asked, concurrency)
                    runs[task, policy] = answers, time.perf_counter() - start
    rows = []
    for task, asked in tasks.items():
        for policy in policies:
            answers, seconds = runs[task, policy]
            reference = runs[task, references[policy]][0] if policy in references else None
            rows.append(make_row(task, policy, asked, answers, reference, seconds))
    return rows


def num_answers(
    questions: Sequence[Question], policies: Sequence[PolicyPair], references: Mapping[PolicyPair, PolicyPair]
) -> int:
    """How many answers `evaluate` will wait for."""
    return len(questions) * len({*policies, *references.values()})


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
