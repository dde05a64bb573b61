"""One answer: the deltas of its choices, interleaved in the order in which their blocks complete.

A whole answer is the fold of the streamed one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from engine import Relayed, Usage
from server.observe.observer import TokenCounts
from server.replies.choice import NOTHING, Choice, Delta
from server.replies.tool_calls import whole_calls

T = TypeVar("T")


class Completion:
    """The choices of one answer. The caller must `abort` it in the end, finished or not."""

    def __init__(
        self,
        choices: Sequence[Choice],
        num_prompt_tokens: Sequence[int],
        *,
        num_kept: int | None = None,
        scoring: Usage = NOTHING,
        counts: TokenCounts,
    ) -> None:
        """`num_prompt_tokens`: the tokens of each prompt. All prompts have the same number of choices.

        `num_kept`: a whole answer has this many choices of each prompt, the most probable ones; None keeps all.
        `scoring`: the usage of scoring the prompts. `counts`: the counters that grow with the usage.
        """
        self._choices = choices
        self._num_prompt_tokens = sum(num_prompt_tokens)
        self._per_prompt = len(choices) // len(num_prompt_tokens)
        self._num_kept = num_kept or self._per_prompt
        self._scoring = scoring
        self._counts = counts
        self._usages = [NOTHING for _ in choices]
        self._fills: list[tuple[str, ...] | None] = [None for _ in choices]
        self._reasoning_tokens = [0 for _ in choices]

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def usage(self) -> Usage:
        """Usage of all choices so far. Each prompt is counted once."""
        spent = [*self._usages, self._scoring]
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=sum(usage.completion_tokens for usage in self._usages),
            forwards=sum(usage.forwards for usage in spent),
            rows_computed=sum(usage.rows_computed for usage in spent),
            visible_tokens=sum(usage.visible_tokens for usage in self._usages),
            cached_tokens=sum(self._cached_tokens),
            kv_evicted=sum(usage.kv_evicted for usage in self._usages),
            kv_resident_peak=max(usage.kv_resident_peak for usage in self._usages),
            relayed=self._relayed,
        )

    @property
    def _relayed(self) -> Relayed | None:
        """Of all choices together, which have named the same answers; None where they named none."""
        of_choices = [usage.relayed for usage in self._usages if usage.relayed]
        if not of_choices:
            return None
        return Relayed(
            adopted=sum(one.adopted for one in of_choices),
            recomputed=sum(one.recomputed for one in of_choices),
            unknown=max(one.unknown for one in of_choices),
        )

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the choices' reasoning so far."""
        return sum(self._reasoning_tokens)

    @property
    def _cached_tokens(self) -> Iterator[int]:
        """Of each prompt: tokens that none of its choices had to compute. Those that siblings share were computed."""
        for usages in self._by_prompt(self._usages):
            yield min(usage.cached_tokens for usage in usages)

    @property
    def fills(self) -> list[str] | None:
        """For infilling: the text of each hole of the choices that have ended."""
        ended = [fills for fills in self._fills if fills is not None]
        return [text for fills in ended for text in fills] if ended else None

    async def deltas(self) -> AsyncIterator[Delta]:
        """The deltas of all choices, in order of arrival. Raises what `Choice.deltas` raises."""
        arrivals: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        async def forward(choice: Choice) -> None:
            try:
                async for delta in choice.deltas():
                    arrivals.put_nowait(delta)
            except Exception as error:  # noqa: BLE001 - raised where the arrivals are read
                arrivals.put_nowait(error)

        self._counts.prompt += self._num_prompt_tokens
        readers = [asyncio.create_task(forward(choice)) for choice in self._choices]
        unfinished = len(readers)
        try:
            while unfinished:
                delta = await arrivals.get()
                if isinstance(delta, Exception):
                    raise delta
                before, self._usages[delta.index] = self._usages[delta.index], delta.usage
                self._counts.generation += delta.usage.completion_tokens - before.completion_tokens
                self._fills[delta.index] = delta.fills
                self._reasoning_tokens[delta.index] = max(
                    self._reasoning_tokens[delta.index], delta.num_reasoning_tokens
                )
                unfinished -= delta.finish_reason is not None
                yield delta
        finally:
            for reader in readers:
                reader.cancel()

    async def fold(self) -> list[Delta]:
        """One delta for each kept choice, with all of its text and tokens, in the order of the prompts."""
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        async for delta in self.deltas():
            deltas[delta.index].append(delta)
        whole = [_joined(parts) for parts in deltas]
        if self._num_kept == self._per_prompt:
            return whole
        kept = [delta for group in self._by_prompt(whole) for delta in self._best(group)]
        self._fills = [delta.fills for delta in kept]
        return [replace(delta, index=index) for index, delta in enumerate(kept)]

    def abort(self) -> None:
        """Removes unfinished choices from the engine. May be called at any time, and repeatedly."""
        for choice in self._choices:
            choice.abort()

    def _best(self, group: Sequence[Delta]) -> list[Delta]:
        return sorted(group, key=lambda delta: self._choices[delta.index].mean_logprob, reverse=True)[: self._num_kept]

    def _by_prompt(self, of_choices: Sequence[T]) -> list[Sequence[T]]:
        return [of_choices[start : start + self._per_prompt] for start in range(0, len(of_choices), self._per_prompt)]


def _joined(parts: Sequence[Delta]) -> Delta:
    text = "".join(part.text for part in parts)
    reasoning = "".join(part.reasoning for part in parts)
    tokens = [token for part in parts for token in part.tokens]
    content_tokens = [token for part in parts for token in part.content_tokens]
    traced = [step for part in parts for step in part.traced]
    prompt_tokens = [token for part in parts for token in part.prompt_tokens]
    calls = whole_calls(call for part in parts for call in part.calls)
    return replace(
        parts[-1],
        text=text,
        reasoning=reasoning,
        calls=calls,
        tokens=tokens,
        content_tokens=content_tokens,
        prompt_tokens=prompt_tokens,
        traced=traced,
    )
