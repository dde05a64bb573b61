"""Answers from a model in this process, through the same engine loop as the server's."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from math import exp
from typing import Any

from engine import (
    MAX_LOGPROBS,
    ConfigError,
    Constraint,
    DiffusionParams,
    EngineConfig,
    EngineLoop,
    Output,
    Quantization,
    SamplingParams,
    Submission,
    load,
)
from server.constraints import MAX_RUNNING, Constraints
from server.decisions.decider import Decider
from server.decisions.questions import Question as Decision
from server.eval.answerers.answers import EvalAnswer, Options
from server.eval.policy import AS_COMPUTED, KVFormat, PolicyPair
from server.eval.questions import Question
from server.observe.observer import Observers, Siblings
from server.prompts.prompts import PromptReader
from server.replies.choice import Choice
from server.replies.completion import Completion
from server.replies.forwards import Forwards
from server.replies.passage import Passage
from server.structured import spec
from server.structured.refusals import Refused
from server.structured.tools import CallableFunction
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

ONE_FORWARD = DiffusionParams(unmask="fixed", steps=1)
NO_INPUT = [{"role": "user", "content": ""}]
"""What decisions are about that say everything themselves."""


class LocalModel:
    """A running engine, its tokenizer and its constraints."""

    def __init__(self, engine: EngineLoop, tokenizer: Tokenizer, constraints: Constraints, options: Options) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._constraints = constraints
        self._may_compile = asyncio.Semaphore(MAX_RUNNING)
        """An evaluation waits where a server refuses."""
        self._options = options
        self._ids = itertools.count()
        info = engine.info
        prompts = PromptReader(tokenizer, max_model_len=info.max_model_len, vocab_size=info.spec.vocab_size)
        self._decider = Decider(engine, tokenizer, prompts, Forwards(engine), Observers().tokens)

    async def ask(self, question: Question, policy: PolicyPair) -> EvalAnswer:
        prompt, room = await self._prompt(question), self._options.room(question)
        fields: dict[str, Any] = policy.diffusion(room)
        submission = Submission(
            request_id=f"eval-{next(self._ids)}",
            prompt_ids=prompt,
            sampling=SamplingParams(
                max_tokens=room, constraint=await self._constraint(question) if policy.guidance else None
            ),
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

    async def judge(self, question: Question) -> Mapping[str, float]:
        """By one forward over the masks of a block."""
        submission = Submission(
            request_id=f"eval-{next(self._ids)}",
            prompt_ids=await self._prompt(question),
            sampling=SamplingParams(max_tokens=1, logprobs=MAX_LOGPROBS, ignore_eos=True),
            diffusion=ONE_FORWARD,
        )
        [stream] = self._engine.submit([submission])
        outputs = [output async for output in stream if isinstance(output, Output)]
        [first] = outputs[0].logprobs or ()
        return {self._tokenizer.decode([token]): exp(logprob) for token, logprob in first.top}

    async def decide(self, decisions: Sequence[Decision]) -> Sequence[Sequence[float]]:
        return (await self._decider.decide(NO_INPUT, decisions)).probabilities

    async def _prompt(self, question: Question) -> list[int]:
        """Token ids: of the plain text if asked for or if there is no chat template, else from the chat template."""
        if self._options.plain or not self._tokenizer.has_chat_template:
            [ids] = await self._tokenizer.encode([question.plain])
            return ids
        turns, tools = ([dict(one) for one in those] for those in (question.messages, question.tools))
        return await self._tokenizer.converse(turns, max_characters=sys.maxsize, tools=tools)

    async def _constraint(self, question: Question) -> Constraint | None:
        """What the answer must be: a form of its schema, or text and calls of the tools; None if nothing is said."""
        if question.schema is not None:
            asked = spec.of_schema(question.schema)
        elif question.tools:
            functions = (tool["function"] for tool in question.tools)
            asked = spec.of_tools([CallableFunction(one["name"], one.get("parameters")) for one in functions], "auto")
        else:
            return None
        try:
            async with self._may_compile:
                return (await self._constraints.compiled(asked)).constraint
        except Refused as error:
            raise ConfigError(f"the schema or tools of {question.task}: {error}") from None


class _Unobserved:
    """Nobody counts the constraints of an evaluation."""

    def on_compiled(self, seconds: float) -> None: ...

    def on_cached(self) -> None: ...

    def on_refused(self, reason: str, keyword: str) -> None: ...


@asynccontextmanager
async def running(
    model: str,
    options: Options,
    concurrency: int,
    kv_format: KVFormat = AS_COMPUTED,
    quantization: Quantization = "none",
) -> AsyncIterator[LocalModel]:
    """Loads the model and runs its engine until the context ends. Raises LoadError or ConfigError."""
    # Without prefix caching, since the second policy's rows would be fewer than the first one's for the same prompts.
    config = EngineConfig(
        model=model,
        max_running_requests=concurrency,
        prefix_caching=False,
        kv_dtype=kv_format.dtype,
        kv_prune=kv_format.prune,
        quantization=quantization,
    )
    engine = EngineLoop(load(config))
    tokenizer = Tokenizer.load(engine.info.folder)
    constraints = Constraints(tokenizer, engine.info.spec, _Unobserved(), is_enabled=True, cache_bytes=2**28)
    engine.start()
    try:
        yield LocalModel(engine, tokenizer, constraints, options)
    finally:
        constraints.close()
        tokenizer.close()
        await engine.stop(0.0)
