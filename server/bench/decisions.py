"""`unmask bench decisions`: questions a second of /v1/decisions, and of asking the same by chat with a constraint."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import httpx
from rich.table import Table

from server.arguments import Parser, count, positive
from server.console import output
from server.remote import call, connect, first_model, sum_reported

MOST = 400
"""Questions of one request."""
COLOURS = ("red", "blue", "green", "black")
THINGS = ("box", "cup", "hat", "kite", "ball", "bag")
NAMES = ("Tom", "Mia", "Leo", "Ann", "Sam", "Eva")
SCALE = ("1", "2", "3", "4", "5")
ROOM = 8
"""Tokens that a chat's answer may take; the constraint ends it sooner."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One question, as decisions have it and as a chat is asked it."""

    decision: dict[str, Any]
    text: str
    answers: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFigures:
    """The speed of one way to ask."""

    way: str
    questions: int
    seconds: float
    """Of the fastest round."""
    per_second: float
    forwards: int | None
    """Steps that the questions took part in, summed; None if the server does not say."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError for errors that the user can fix."""
    args = _parse(argv[1:])
    figures = asyncio.run(_measure(args))
    if args.json:
        sys.stdout.write(json.dumps([asdict(one) for one in figures], indent=2) + "\n")
        return 0
    table = Table(title=f"{args.questions} questions about one input of {args.words} words")
    for title in ("", "questions/s", "seconds", "forwards of a question"):
        table.add_column(title, justify="right" if title else "left")
    for one in figures:
        forwards = "" if one.forwards is None else f"{one.forwards / one.questions:.2f}"
        table.add_row(one.way, f"{one.per_second:.1f}", f"{one.seconds:.2f}", forwards)
    output(100).print(table)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench decisions",
        description="Asks a running server yes/no questions, choices of four and scores from 1 to 5 about one input: "
        "by /v1/decisions, and one by one by /v1/chat/completions with `structured_outputs.choice`. Each way is "
        "measured in rounds after a first one that is not counted, and the fastest round is told.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="the server")
    parser.add_argument("--model", help="the name to ask for; by default the server's first")
    parser.add_argument("--api-key", default="none", help="for the server")
    parser.add_argument("--questions", type=positive, default=MOST, metavar="N", help="how many")
    parser.add_argument("--words", type=positive, default=20, metavar="N", help="of the input")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="that are counted")
    parser.add_argument("--concurrency", type=positive, default=64, metavar="N", help="chats at a time")
    parser.add_argument("--joint", type=count, default=0, metavar="N", help="also with N questions on one canvas")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    return parser.parse_args(argv)


async def _measure(args: argparse.Namespace) -> list[DecisionFigures]:
    rng = Random(0)
    told = _input(rng, args.words)
    questions = [_question(rng, number) for number in range(args.questions)]
    async with connect(args.base_url, args.api_key) as http:
        model = args.model or await first_model(http)

        async def decide(some: Sequence[_Question], *, joint: bool = False) -> int | None:
            body = {"model": model, "input": told, "questions": [one.decision for one in some]}
            reply = await call(http, "POST", "decisions", body | ({"diffusion": {"joint": True}} if joint else {}))
            return _forwards(reply)

        async def decide_all() -> int | None:
            parts = [await decide(questions[first : first + MOST]) for first in range(0, len(questions), MOST)]
            return sum_reported(parts)

        async def decide_jointly() -> int | None:
            size = args.joint
            parts = [decide(questions[at : at + size], joint=True) for at in range(0, len(questions), size)]
            return sum_reported(await asyncio.gather(*parts))

        async def chat_all() -> int | None:
            room = asyncio.Semaphore(args.concurrency)
            return sum_reported(await asyncio.gather(*(_chat(http, model, told, one, room) for one in questions)))

        ways: dict[str, Callable[[], Awaitable[int | None]]] = {"decisions": decide_all}
        if args.joint:
            ways[f"decisions, {args.joint} on a canvas"] = decide_jointly
        ways["chat with a constraint"] = chat_all
        return [await _timed(way, ask, len(questions), args.rounds) for way, ask in ways.items()]


async def _timed(way: str, ask: Callable[[], Awaitable[int | None]], number: int, rounds: int) -> DecisionFigures:
    await ask()
    best, forwards = float("inf"), None
    for _ in range(rounds):
        begun = time.perf_counter()
        forwards = await ask()
        best = min(best, time.perf_counter() - begun)
    return DecisionFigures(way=way, questions=number, seconds=best, per_second=number / best, forwards=forwards)


async def _chat(
    http: httpx.AsyncClient, model: str, told: str, question: _Question, room: asyncio.Semaphore
) -> int | None:
    async with room:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{told}\n{question.text}"}],
            "structured_outputs": {"choice": question.answers},
            "max_tokens": ROOM,
            "temperature": 0,
        }
        return _forwards(await call(http, "POST", "chat/completions", body))


def _forwards(reply: Any) -> int | None:
    forwards = ((reply.get("usage") or {}).get("diffusion") or {}).get("forwards")
    return forwards if isinstance(forwards, int) else None


def _input(rng: Random, words: int) -> str:
    told: list[str] = []
    while len(told) < words:
        told += f"{rng.choice(NAMES)} has a {rng.choice(COLOURS)} {rng.choice(THINGS)}.".split()
    return " ".join(told[:words])


def _question(rng: Random, number: int) -> _Question:
    """Yes or no, a choice and a score, in turn."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    if number % 3 == 0:
        asked = f"Does {name} have the {thing}?"
        decision: dict[str, Any] = {"type": "predicate", "instructions": asked}
        return _Question(decision, f"{asked} Answer yes or no.", ("Yes", "No"))
    if number % 3 == 1:
        asked = f"What colour is the {thing} of {name}?"
        listed = "\n".join(f"{label}: {colour}" for label, colour in zip("ABCD", COLOURS, strict=True))
        decision = {"type": "choice", "instructions": asked, "choices": [{"value": colour} for colour in COLOURS]}
        return _Question(decision, f"{asked}\n{listed}\nAnswer with the letter.", tuple("ABCD"))
    asked = f"How much does {name} like the {thing}?"
    decision = {"type": "score", "instructions": asked, "levels": [{"label": label} for label in SCALE]}
    return _Question(decision, f"{asked} Answer from 1 to 5.", SCALE)
