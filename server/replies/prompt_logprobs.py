"""Scores of prompts: the pseudo-log-likelihood of their tokens.

A diffusion model has no probability of a token given only the tokens before it. It has the probability of a token given
all the others: one forward for each token, in which that token is masked (Salazar et al., arXiv 1910.14659).
"""

from collections.abc import Sequence

from engine import (
    DiffusionParams,
    EngineLoop,
    Hole,
    RequestFailed,
    SamplingParams,
    Submission,
    TokenLogprobs,
    Usage,
)
from server.replies.forwards import Forwards, spent

MAX_IN_FLIGHT = 16
"""Tokens that one HTTP request scores at a time."""

PromptLogprobs = list[TokenLogprobs | None]
"""For each token of a prompt; None for a token that is not scored."""


class PromptScorer:
    """Scores prompts with a bounded number of engine requests."""

    def __init__(self, engine: EngineLoop, forwards: Forwards) -> None:
        self._mask_id = engine.info.spec.mask_id
        self._forwards = forwards

    async def score(
        self, response_id: str, prompts: Sequence[Sequence[int]], num_top: int
    ) -> tuple[list[PromptLogprobs], Usage]:
        """Log-probabilities of every prompt, and their usage.

        Waits while the queue is full, and raises the engine's other errors. The first token of a prompt is
        not scored, as in OpenAI's API, and mask tokens are not.
        """
        scores: list[PromptLogprobs] = [[None] * len(prompt) for prompt in prompts]
        places = [
            (number, place)
            for number, prompt in enumerate(prompts)
            for place in range(1, len(prompt))
            if prompt[place] != self._mask_id
        ]
        submissions = (
            _masked(f"{response_id}-score-{number}-{place}", prompts[number], place, num_top)
            for number, place in places
        )
        blocks = await self._forwards.run(submissions, MAX_IN_FLIGHT)
        for (number, place), block in zip(places, blocks, strict=True):
            if not block.logprobs:
                raise RequestFailed("The engine did not say how probable a token is.")
            [scores[number][place]] = block.logprobs
        return scores, spent(blocks)


def _masked(request_id: str, prompt: Sequence[int], place: int, num_top: int) -> Submission:
    """The prompt with a hole in place of one token, in which only that token is allowed."""
    return Submission(
        request_id=request_id,
        prompt_ids=[*prompt[:place], *prompt[place + 1 :]],
        sampling=SamplingParams(max_tokens=1, allowed_ids=frozenset({prompt[place]}), logprobs=num_top),
        diffusion=DiffusionParams(cache="none", unmask="fixed", block_length=1),
        holes=(Hole(offset=place, length=1),),
    )
