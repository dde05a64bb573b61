"""Scores of prompts: the pseudo-log-likelihood of their tokens.

A diffusion model has no probability of a token given only the tokens before it. It has the probability of a token given
all the others: one forward for each token, in which that token is masked (Salazar et al., arXiv 1910.14659).
"""

import asyncio
from collections.abc import Iterator, Sequence

from engine import (
    DiffusionParams,
    EngineLoop,
    Hole,
    Output,
    OutputStream,
    QueueFull,
    RequestFailed,
    SamplingParams,
    Submission,
    TokenLogprobs,
    Usage,
)
from server.replies.choice import NOTHING, check_end

MAX_IN_FLIGHT = 16
"""Tokens that one HTTP request scores at a time."""
PATIENCE_SECONDS = 0.02
"""Pause between looks at a full queue."""

PromptLogprobs = list[TokenLogprobs | None]
"""For each token of a prompt; None for a token that is not scored."""


class PromptScorer:
    """Scores prompts with a bounded number of engine requests. Leaves half of the queue to other requests."""

    def __init__(self, engine: EngineLoop) -> None:
        self._engine = engine
        info = engine.info
        self._mask_id = info.spec.mask_id
        self._max_waiting = max(1, info.max_queued_requests // 2)
        self._turn = asyncio.Lock()
        """Held by the one submission that polls the queue. Thousands may wait for the lock instead of polling."""

    async def score(
        self, response_id: str, prompts: Sequence[Sequence[int]], num_top: int
    ) -> tuple[list[PromptLogprobs], Usage]:
        """Log-probabilities of every prompt, and their usage.

        Waits while the queue is full, and raises the engine's other errors. The first token of a prompt is
        not scored, as in OpenAI's API, and mask tokens are not.
        """
        scores: list[PromptLogprobs] = [[None] * len(prompt) for prompt in prompts]
        spent: list[Usage] = []
        places = self._places(prompts)

        async def work() -> None:
            for number, place in places:
                request_id = f"{response_id}-score-{number}-{place}"
                scores[number][place], usage = await self._score(request_id, prompts[number], place, num_top)
                spent.append(usage)

        workers = [asyncio.create_task(work()) for _ in range(MAX_IN_FLIGHT)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        total = Usage(
            prompt_tokens=0,
            completion_tokens=0,
            forwards=sum(usage.forwards for usage in spent),
            rows_computed=sum(usage.rows_computed for usage in spent),
        )
        return scores, total

    def _places(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        for number, prompt in enumerate(prompts):
            yield from ((number, place) for place in range(1, len(prompt)) if prompt[place] != self._mask_id)

    async def _score(
        self, request_id: str, prompt: Sequence[int], place: int, num_top: int
    ) -> tuple[TokenLogprobs, Usage]:
        """Replaces the token at `place` by a hole of one position, in which only that token is allowed."""
        submission = Submission(
            request_id=request_id,
            prompt_ids=[*prompt[:place], *prompt[place + 1 :]],
            sampling=SamplingParams(max_tokens=1, allowed_ids=frozenset({prompt[place]}), logprobs=num_top),
            diffusion=DiffusionParams(cache="none", unmask="fixed", block_length=1),
            holes=(Hole(offset=place, length=1),),
        )
        stream = await self._submit(submission)
        found, usage = None, NOTHING
        try:
            async for output in stream:
                assert isinstance(output, Output)  # nobody watches this
                check_end(output)
                found, usage = output.logprobs or found, output.usage
        finally:
            stream.abort()
        if not found:
            raise RequestFailed("The engine did not say how probable a token is.")
        return found[0], usage

    async def _submit(self, submission: Submission) -> OutputStream:
        """Submits as soon as fewer than half of the queue's places are taken.

        Raises EngineUnavailable if the engine accepts no more requests.
        """
        async with self._turn:
            while True:
                if self._engine.num_waiting < self._max_waiting or not self._engine.accepting:
                    try:
                        [stream] = self._engine.submit([submission])
                    except QueueFull:
                        pass
                    else:
                        return stream
                await asyncio.sleep(PATIENCE_SECONDS)
