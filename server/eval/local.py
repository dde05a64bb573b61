"""Answers from a model in this process, through the same engine loop as the server's."""

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from engine import DiffusionParams, EngineConfig, EngineLoop, SamplingParams, Submission, load
from server.eval.answers import EvalAnswer, Options
from server.eval.policy import PolicyPair
from server.eval.questions import Question
from server.observe.observer import Observers, Siblings
from server.replies.choice import Choice
from server.replies.completion import Completion
from server.replies.passage import Passage
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer


class LocalModel:
    """A running engine and its tokenizer."""

    def __init__(self, engine: EngineLoop, tokenizer: Tokenizer, options: Options) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._options = options
        self._ids = itertools.count()

    async def ask(self, question: Question, policy: PolicyPair) -> EvalAnswer:
        prompt = await self._prompt(question)
        fields: dict[str, Any] = policy.diffusion(self._options.max_tokens)
        submission = Submission(
            request_id=f"eval-{next(self._ids)}",
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=self._options.max_tokens),
            diffusion=DiffusionParams(**fields),
        )
        [stream] = self._engine.submit([submission])
        observers = Observers()
        observed = observers.observe(stream, submission, Siblings(n=1, num_running=1))
        choice = Choice(0, observed, [Passage(Detokenizer(self._tokenizer))])
        [end] = await Completion([choice], [len(prompt)], counts=observers.tokens).fold()
        return EvalAnswer(
            text=self._options.trim(end.text),
            tokens=end.usage.completion_tokens,
            forwards=end.usage.forwards,
            rows=end.usage.rows_computed,
        )

    async def _prompt(self, question: Question) -> list[int]:
        """Token ids: of the plain text if asked for or if there is no chat template, else from the chat template."""
        if self._options.plain or not self._tokenizer.has_chat_template:
            [ids] = await self._tokenizer.encode([question.plain])
            return ids
        return await self._tokenizer.converse([dict(turn) for turn in question.messages], max_characters=sys.maxsize)


@asynccontextmanager
async def running(model: str, options: Options, concurrency: int) -> AsyncIterator[LocalModel]:
    """Loads the model and runs its engine until the context ends. Raises LoadError or ConfigError."""
    # Without prefix caching, since the second policy's rows would be fewer than the first one's for the same prompts.
    config = EngineConfig(model=model, max_running_requests=concurrency, prefix_caching=False)
    engine = EngineLoop(load(config))
    tokenizer = Tokenizer.load(engine.info.folder)
    engine.start()
    try:
        yield LocalModel(engine, tokenizer, options)
    finally:
        tokenizer.close()
        await engine.stop(0.0)
