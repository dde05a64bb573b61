"""Decides: the probability of each answer to each question about one conversation.

Each question is a canvas of its own, so that answers do not depend on each other: the conversation, the question, and a
blank, which is a mask where the answer's one token would stand. One forward scores it, and nothing is decoded. Models
that attend in both directions see the end of the answer's turn behind the blank. Joint questions are on one canvas,
whose blanks are all scored by one forward.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from math import exp
from secrets import token_hex
from typing import Any

from engine import (
    ContextLengthExceeded,
    DiffusionParams,
    EngineLoop,
    Hole,
    InvalidRequest,
    RequestFailed,
    SamplingParams,
    Submission,
    Usage,
)
from server.decisions.labels import Labels, read_labels
from server.decisions.questions import Asked, Question, asked
from server.observe.observer import TokenCounts
from server.prompts.prompts import LONGEST_TOGETHER, PromptReader
from server.replies.forwards import Forwards, spent
from server.text.encoder import Endings, TooLong
from server.text.tokenizer import Tokenizer
from server.text.turns import NoObject, texts

Turn = Mapping[str, Any]
"""One turn of a conversation, as `server.text.turns` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The answers, and what they have cost."""

    probabilities: Sequence[Sequence[float]]
    """Of each question, in order: of each of its options. They add up to 1."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Tokens with blanks between them, and the labels that are read at each blank.

    Its tokens are kept in pieces: hundreds of canvases share the long ones, and few of them are written out at a time.
    """

    before: Sequence[int]
    """The tokens before the question."""
    question: Sequence[int]
    opening: Sequence[int]
    """Between the question and the answer."""
    lines: Sequence[Sequence[int]]
    """What the answer has before each blank."""
    closing: Sequence[int]
    """Behind the last blank."""
    asked: Sequence[Asked]

    @property
    def offsets(self) -> list[int]:
        """Of each blank: tokens before it."""
        start = len(self.before) + len(self.question) + len(self.opening)
        return [*accumulate(map(len, self.lines), initial=start)][1:]

    @property
    def num_ids(self) -> int:
        """Tokens, without the blanks."""
        return self.offsets[-1] + len(self.closing)

    @property
    def ids(self) -> list[int]:
        return [*self.before, *self.question, *self.opening, *chain.from_iterable(self.lines), *self.closing]


class Decider:
    """Decides by one engine and its tokenizer."""

    def __init__(
        self,
        engine: EngineLoop,
        tokenizer: Tokenizer,
        prompts: PromptReader,
        forwards: Forwards,
        counts: TokenCounts,
    ) -> None:
        """`counts`: the counters that grow with the usage."""
        self._info = engine.info
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._forwards = forwards
        self._counts = counts
        self._labels: Labels | None = None
        self._reading = asyncio.Lock()

    async def decide(
        self,
        turns: Sequence[Turn],
        questions: Sequence[Question],
        *,
        is_joint: bool = False,
        cache_salt: str = "",
    ) -> Decided:
        """Asks every question about the conversation. `turns`, `questions`: one at least.

        Waits while the engine's queue is full. Raises InvalidRequest, in the words of the API (`input`, `questions.0`,
        `diffusion.joint`), ContextLengthExceeded, and what `Forwards.run` raises.
        """
        if self._info.spec.mask_id is None:
            raise InvalidRequest(
                f"Decisions are read off masks, of which the model has none ({self._info.spec.family}).", "questions"
            )
        if is_joint and self._info.spec.is_block_causal:
            raise InvalidRequest(
                f"The model is block-causal ({self._info.spec.family}): one forward cannot score blanks of several "
                "blocks. Leave `diffusion.joint` out; questions share what is computed of the input.",
                "diffusion.joint",
            )
        labels = await self._read_labels()
        worded = [_asked(number, question, labels) for number, question in enumerate(questions)]
        canvases = await self._canvases(turns, worded, is_joint)
        for number, canvas in enumerate(canvases):
            self._check_length(canvas, "questions" if is_joint else f"questions.{number}")
        key = token_hex(16)
        submissions = (
            self._submission(f"decision-{key}-{number}", canvas, cache_salt) for number, canvas in enumerate(canvases)
        )
        blocks = await self._forwards.run(submissions, 2 * self._info.max_running_requests)
        found: list[Sequence[float]] = []
        for canvas, block in zip(canvases, blocks, strict=True):
            if not block.logprobs:
                raise RequestFailed("The engine did not say how probable the answers are.")
            ids = _ids(canvas)
            for one, told in zip(canvas.asked, block.logprobs, strict=True):
                by_id = dict(zip(ids, told.named, strict=True))
                found.append(_shares([by_id[label.id] for label in one.labels]))
        usage = replace(spent(blocks), prompt_tokens=sum(canvas.num_ids for canvas in canvases))
        self._counts.prompt += usage.prompt_tokens
        return Decided(probabilities=found, usage=usage)

    async def _read_labels(self) -> Labels:
        async with self._reading:
            if self._labels is None:
                self._labels = await read_labels(self._tokenizer, self._info.spec.vocab_size)
        return self._labels

    async def _canvases(self, turns: Sequence[Turn], worded: Sequence[Asked], is_joint: bool) -> list[_Canvas]:
        endings = [one.text for one in worded]
        if is_joint:
            endings = ["\n".join(f"{number}. {text}" for number, text in enumerate(endings, start=1))]
        told = await self._read(turns, endings)
        closing = () if self._info.spec.is_block_causal else told["closing"]
        if not is_joint:
            return [
                _Canvas(told["before"], ending, told["opening"], [()], closing, [one])
                for ending, one in zip(told["endings"], worded, strict=True)
            ]
        lines = ["1:\n", *(f"\n{number}:\n" for number in range(2, len(worded) + 1))]
        encoded = await self._tokenizer.encode(lines, add_special_tokens=False, param="questions")
        return [_Canvas(told["before"], told["endings"][0], told["opening"], encoded, closing, worded)]

    async def _read(self, turns: Sequence[Turn], endings: Sequence[str]) -> Endings:
        """The conversation with each of these texts at the end of a turn of the user."""
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest("This model has no chat template, by which it would be asked.", "input")
        *before, last = [dict(turn) for turn in turns]
        if last["role"] != "user":
            before, last = [*before, last], {"role": "user", "content": ""}
        elif last["content"]:
            last["content"] += "\n"
        self._prompts.check_length(texts([*before, last]), "input")
        lengths, most = [*map(len, endings)], self._prompts.max_characters
        longest, together = max(lengths), sum(lengths)
        if longest > most or together > LONGEST_TOGETHER * most:
            raise self._prompts.too_long(longest if longest > most else together, "questions")
        try:
            return await self._tokenizer.converse_each([*before, last], endings, max_characters=most)
        except NoObject:
            raise InvalidRequest("The `arguments` of a call must be the JSON text of an object.", "input") from None
        except TooLong as error:
            raise self._prompts.too_long(error.characters, "input") from None

    def _check_length(self, canvas: _Canvas, param: str) -> None:
        """`param`: the questions of the canvas. Raises ContextLengthExceeded, which names them or the input."""
        length, most = canvas.num_ids + len(canvas.lines), self._info.max_model_len
        if length > most:
            num_before = len(canvas.before)
            param = "input" if 2 * num_before > length else param
            raise ContextLengthExceeded(
                f"This model's maximum context length is {most} tokens. However, the input has {num_before} "
                f"tokens, and {length - num_before} are for what is asked about it.",
                param,
            )

    def _submission(self, request_id: str, canvas: _Canvas, cache_salt: str) -> Submission:
        """All blanks lie in one block, which one step decodes. A block-causal model has its blank behind the tokens."""
        offsets, is_causal = canvas.offsets, self._info.spec.is_block_causal
        count = len(offsets)
        span = offsets[-1] - offsets[0] + count
        return Submission(
            request_id=request_id,
            prompt_ids=canvas.ids,
            sampling=SamplingParams(max_tokens=count, ignore_eos=True, logprobs=0, logprob_ids=_ids(canvas)),
            diffusion=DiffusionParams(unmask="fixed", steps=1, block_length=None if is_causal else span),
            holes=() if is_causal else tuple(Hole(offset=offset, length=1) for offset in offsets),
            cache_salt=cache_salt,
        )


def _asked(number: int, question: Question, labels: Labels) -> Asked:
    if (found := asked(question, labels)) is None:
        raise InvalidRequest(
            f"This model's tokenizer has labels of one token for {len(labels.names)} options, not for "
            f"{len(question.options)}.",
            f"questions.{number}.{'levels' if question.kind == 'score' else 'choices'}",
        )
    return found


def _ids(canvas: _Canvas) -> tuple[int, ...]:
    """The tokens that are read at the canvas's blanks, each once."""
    return tuple(dict.fromkeys(label.id for one in canvas.asked for label in one.labels))


def _shares(logprobs: Sequence[float]) -> list[float]:
    """The probability of each, given that it is one of them."""
    highest = max(logprobs)
    weights = [exp(logprob - highest) for logprob in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]
