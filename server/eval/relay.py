"""What answers are worth whose prompts take over keys and values (`diffusion.relay_from`), and what they save.

`python -m server.eval.relay [--model demo] [--cache window] [--limit 100] [--seed 0]` asks a bundled model two things,
once with all rows computed and then with shares of the adopted ones computed again:

- *examples*: what two earlier conversations asked and answered stands solved before a question of the same kind;
- *content*: the question is about the answer of an earlier conversation, which had another beginning.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from engine import (
    BUNDLED,
    DemoProblem,
    DiffusionParams,
    Engine,
    EngineConfig,
    Relayed,
    SamplingParams,
    Submission,
    demo_problems,
    demo_solved,
    load,
)
from server.text.tokenizer import Tokenizer

SHARES = (0.0, 0.15, 0.5, 1.0)
EXAMPLES = ("sort", "reverse", "facts")
_HEAD = """\
| case (questions) | taken over | exact answers | same answer | rows of the first step |
|---|---|---:|---:|---:|"""
ROOM = 64
"""Tokens of an answer at most."""

Turns = list[dict[str, Any]]


@dataclass(slots=True)
class Told:
    """What came of one request."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    first_rows: int = 0
    """Rows of its first step."""
    relayed: Relayed | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A question, and the conversations whose keys and values its prompt may take over."""

    problem: DemoProblem
    sources: tuple[str, ...]
    turns: Turns


class Asker:
    """An engine and its tokenizer: many conversations at a time."""

    def __init__(self, model: str, cache: str) -> None:
        # Without shared prefixes: all rows that are saved are then those of what was taken over.
        self._engine: Engine = load(EngineConfig(model=BUNDLED[model], relay_tokens=1_000_000, prefix_caching=False))
        self.tokenizer = Tokenizer.load(self._engine.info.folder)
        self._cache = cache

    async def ask(
        self, conversations: Mapping[str, Turns], sources: Mapping[str, tuple[str, ...]] | None = None, share: float = 0
    ) -> dict[str, Told]:
        """The answers by the conversations' names. Without `sources`, later conversations may name these."""
        for name, turns in conversations.items():
            before = await self._ids(turns[:-1], opens=False) if len(turns) > 1 else []
            submission = Submission(
                request_id=name,
                prompt_ids=await self._ids(turns),
                sampling=SamplingParams(max_tokens=ROOM),
                diffusion=DiffusionParams(cache=self._cache, relay_recompute=share),
                relay_as="" if sources else name,
                relay_from=sources[name] if sources else (),
                relay_end=len(before),
                is_traced=True,
            )
            self._engine.submit(self._engine.new_request(submission))
        told = {name: Told() for name in conversations}
        while self._engine.has_work:
            outputs = self._engine.step()
            for step in self._engine.take_traced():
                if step.step == 1:
                    told[step.request_id].first_rows = sum(end - start for start, end in step.rows)
            for output in outputs:
                one = told[output.request_id]
                one.ids += output.token_ids
                one.relayed = output.usage.relayed
        for one in told.values():
            one.text = self.tokenizer.decode(one.ids)
        return told

    async def _ids(self, turns: Turns, *, opens: bool = True) -> list[int]:
        return await self.tokenizer.converse(turns, max_characters=sys.maxsize, add_generation_prompt=opens)


async def examples(asker: Asker, limit: int, seed: int) -> list[Case]:
    """Problems whose two solved ones were answered by the model itself."""
    groups = [demo_problems(EXAMPLES[n % len(EXAMPLES)], 1000 * (seed + 1) + n, 3) for n in range(limit)]
    asked = {f"examples-{n}-{i}": group[i].messages() for n, group in enumerate(groups) for i in range(2)}
    told = await asker.ask(asked)
    cases = []
    for n, group in enumerate(groups):
        sources = (f"examples-{n}-0", f"examples-{n}-1")
        solved = [turn for name in sources for turn in (*asked[name], _said(told[name]))]
        cases.append(Case(group[2], sources, [*solved, *group[2].messages()]))
    return cases


async def content(asker: Asker, limit: int, seed: int) -> list[Case]:
    """Second questions about a first answer, which the model gave behind an example of two other questions.

    Those alone whose first answer was right.
    """
    problems = demo_problems("turn", seed, limit)
    asked = {}
    for n, problem in enumerate(problems):
        [other] = demo_solved(problem, seed + n, 1)
        solved = [*other.messages(), {"role": "assistant", "content": other.answer}]
        asked[f"content-{n}"] = [*solved, problem.messages()[0]]
    told = await asker.ask(asked)
    return [
        Case(problem, (name,), [problem.messages()[0], _said(told[name]), problem.messages()[-1]])
        for problem, name in zip(problems, asked, strict=True)
        if problem.before[1].content == told[name].text.strip()
    ]


def _said(told: Told) -> dict[str, Any]:
    return {"role": "assistant", "content": told.text.strip()}


async def table(asker: Asker, name: str, cases: Sequence[Case]) -> list[str]:
    """Rows of Markdown: all computed, then each of the `SHARES`."""
    lines, cold = list[str](), dict[str, Told]()
    for share in (None, *SHARES):
        asked = {f"{name}-{n}-{share}": case.turns for n, case in enumerate(cases)}
        sources = {f"{name}-{n}-{share}": () if share is None else case.sources for n, case in enumerate(cases)}
        told = dict(zip(range(len(cases)), (await asker.ask(asked, sources, share or 0.0)).values(), strict=True))
        cold = cold or {str(n): one for n, one in told.items()}
        right = sum(case.problem.check(told[n].text.strip()) for n, case in enumerate(cases))
        same = sum(one.ids == cold[str(n)].ids for n, one in told.items())
        rows = sum(one.first_rows for one in told.values()) / sum(one.first_rows for one in cold.values())
        adopted = sum(one.relayed.adopted for one in told.values() if one.relayed)
        prompts = "nothing" if share is None else f"{adopted / len(cases):.0f} tokens, {share:.0%} of them again"
        count = len(cases)
        lines.append(f"| {name} | {prompts} | {right / count:.1%} | {same / count:.1%} | {rows:.2f} |")
    return lines


async def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m server.eval.relay", description="See the module's text.")
    parser.add_argument("--model", choices=list(BUNDLED), default="demo")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    asker = Asker(args.model, args.cache)
    with closing(asker.tokenizer):
        sys.stdout.write(f"{args.model}, cache {args.cache}\n\n{_HEAD}\n")
        for name, cases in (
            ("examples", await examples(asker, args.limit, args.seed)),
            ("content", await content(asker, args.limit, args.seed)),
        ):
            lines = await table(asker, f"{name} ({len(cases)})", cases)
            sys.stdout.write("\n".join([*lines, ""]))
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
