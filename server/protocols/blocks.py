"""An answer as a sequence of blocks, each reasoning, a text or a call: the shape that newer APIs give to answers.

A block opens, grows, and closes before the next one opens. A whole answer is the fold of its stream, so both have the
same blocks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine import FinishReason
from server.replies.choice import Delta
from server.replies.passage import Token

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """Reasoning, a text, or a call of a function."""

    index: int
    """Number of the block in its answer, from 0."""
    kind: Kind
    name: str = ""
    """Of the function that is called."""
    text: str = ""
    """So far: the text itself, or the call's arguments."""
    tokens: list[Token] = field(default_factory=list)
    """Those of a text, if the request asked for tokens."""
    is_whole: bool = False
    """Whether it closed before the answer was cut."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins, with nothing in it."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """A block is longer."""

    block: Block
    text: str
    """What has been added."""
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """A block is complete, or cut with the answer."""

    block: Block


Change = Opened | Grown | Closed


class Blocks:
    """Reads the deltas of one choice. An answer without anything is one empty text."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        """The blocks so far."""
        self._is_open = False
        self._tokens: list[Token] = []
        """Tokens for the next text."""

    def read(self, delta: Delta) -> Iterator[Change]:
        """What a delta changes. Its text or call belongs to the last block or begins another."""
        self._tokens += delta.content_tokens
        texts: tuple[tuple[Kind, str], ...] = (("reasoning", delta.reasoning), ("text", delta.text))
        for kind, text in texts:
            if text:
                if not self._is_open or self.all[-1].kind != kind:
                    yield from self._begin(kind)
                yield self._grown(text)
        for call in delta.calls:
            if call.name is not None:
                yield from self._begin("call", call.name)
            if call.arguments:
                yield self._grown(call.arguments)
        if delta.finish_reason is not None:
            if not self.all:
                yield from self._begin("text")
            is_call = self.all[-1].kind == "call"
            is_cut = delta.is_amid_call if is_call else delta.finish_reason is FinishReason.LENGTH
            # A call whose arguments are complete stays whole if the next one is cut before its arguments.
            yield from self._end(is_whole=not is_cut or (is_call and _is_json(self.all[-1].text)))

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Change]:
        yield from self._end(is_whole=True)
        block = Block(len(self.all), kind, name)
        self.all.append(block)
        self._is_open = True
        yield Opened(block)

    def _grown(self, text: str) -> Grown:
        block = self.all[-1]
        block.text += text
        if block.kind != "text":
            return Grown(block, text)
        tokens, self._tokens = tuple(self._tokens), []
        block.tokens += tokens
        return Grown(block, text, tokens)

    def _end(self, *, is_whole: bool) -> Iterator[Change]:
        if not self._is_open:
            return
        block = self.all[-1]
        if self._tokens and block.kind == "text":
            yield self._grown("")
        block.is_whole = is_whole
        self._is_open = False
        yield Closed(block)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
