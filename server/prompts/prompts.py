"""Prompts as the engine takes them: token ids, and the holes to fill.

A text may contain holes, written `<|fill:8|>`. A `suffix` makes one hole between the prompt and itself.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine import ContextLengthExceeded, Hole, InvalidRequest
from server.schemas import Prompts
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

_HOLE = re.compile(r"<\|fill:(.{0,20}?)\|>", re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,9}", re.ASCII)
CHARACTERS_PER_TOKEN = 16
"""A text of more characters for each token of the context is refused before it is tokenized."""
LONGEST_TOGETHER = 16
"""A list of prompts may have this many times the characters of one prompt: 4 MB of text take seconds to tokenize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The canvas before decoding: token ids and holes, and the texts that the answer may need."""

    ids: Sequence[int]
    literals: Sequence[str] = ("", "")
    """The texts before, between and after the answer's passages, for `echo`: one more than there are passages."""
    fills: tuple[Hole, ...] = ()
    """The holes as written in the request. Without any, the answer follows the prompt."""
    starts: Sequence[int] = ()
    """Characters of the prompt's text before each token; empty unless requested by `locate`."""

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes as the engine takes them: adjacent fills are merged into one hole."""
        merged: list[Hole] = []
        for fill in self.fills:
            if merged and merged[-1].offset == fill.offset:
                merged[-1] = Hole(offset=fill.offset, length=merged[-1].length + fill.length)
            else:
                merged.append(fill)
        return tuple(merged)

    @property
    def starts_on_canvas(self) -> list[int]:
        """The position at which each of the fills begins, or else the answer."""
        before = accumulate((fill.length for fill in self.fills), initial=0)
        return [fill.offset + filled for fill, filled in zip(self.fills, before, strict=False)] or [len(self.ids)]

    @property
    def num_filled(self) -> int:
        """Number of positions in all holes."""
        return sum(fill.length for fill in self.fills)


class PromptReader:
    """Turns the prompts of a request's body into `Prompt`s. Long work runs off the event loop."""

    def __init__(self, tokenizer: Tokenizer, *, max_model_len: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size

    @property
    def max_characters(self) -> int:
        """Characters that one prompt may have, whatever its tokens are."""
        return self._max_model_len * CHARACTERS_PER_TOKEN

    def check_length(self, texts: Iterable[str], param: str = "prompt") -> None:
        """Raises ContextLengthExceeded for texts that together have too many characters for one prompt."""
        if (length := sum(map(len, texts))) > self.max_characters:
            raise self.too_long(length, param)

    def too_long(self, num_characters: int, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's maximum context length is {self._max_model_len} tokens. However, `{param}` has "
            f"{num_characters} characters.",
            param,
        )

    def check_ids(self, ids: Sequence[int], param: str = "prompt") -> None:
        """Raises ContextLengthExceeded for too many tokens, InvalidRequest for ids out of the vocabulary."""
        if len(ids) > self._max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._max_model_len} tokens. However, `{param}` has "
                f"{len(ids)}.",
                param,
            )
        if (highest := max(ids, default=0)) >= self._vocab_size:
            raise InvalidRequest(
                f"Token id {highest} is out of vocabulary: ids are 0 to {self._vocab_size - 1}.", param
            )

    async def read(
        self, prompts: Prompts, *, add_special_tokens: bool = True, echo: bool = False, locate: bool = False
    ) -> list[Prompt]:
        """The prompts in order. `echo`: with the text of each. `locate`: with the `starts` of its tokens.

        Raises InvalidRequest, or ContextLengthExceeded.
        """
        self._check(prompts)
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if not texts:
            return [await self._from_ids(prompt, echo, locate) for prompt in prompts if not isinstance(prompt, str)]
        pieces = [_split(text) for text in texts]
        plain = [text for text, (_, lengths) in zip(texts, pieces, strict=True) if not lengths]
        encoded = iter(await self._tokenizer.encode(plain, add_special_tokens=add_special_tokens))
        starts: Iterator[Sequence[int]] = iter(())
        if locate:
            starts = iter(await self._tokenizer.locate(plain, add_special_tokens=add_special_tokens))
        return [
            await self._join(literals, lengths, add_special_tokens)
            if lengths
            else Prompt(ids=next(encoded), literals=(text, ""), starts=next(starts, ()))
            for text, (literals, lengths) in zip(texts, pieces, strict=True)
        ]

    async def read_infix(
        self, prompts: Prompts, suffix: str, length: int, *, add_special_tokens: bool = True, echo: bool = False
    ) -> list[Prompt]:
        """Each prompt, followed by a hole of `length` positions and the suffix.

        Raises InvalidRequest, or ContextLengthExceeded.
        """
        self._check(prompts)
        self.check_length([suffix], "suffix")
        if _HOLE.search(suffix):
            raise InvalidRequest("A `suffix` cannot have holes, `<|fill:N|>`; write all of it as the prompt.", "suffix")
        read = []
        for prompt in prompts:
            if isinstance(prompt, str):
                if _split(prompt)[1]:
                    raise InvalidRequest("A prompt with holes, `<|fill:N|>`, cannot have a `suffix` too.", "suffix")
                read.append(await self._join([prompt, suffix], [length], add_special_tokens))
            else:
                before = await self._from_ids(prompt, echo, locate=False)
                [behind] = await self._tokenizer.encode([suffix], add_special_tokens=False)
                literals = (before.literals[0], suffix) if echo else ("", "")
                fills = (Hole(offset=len(prompt), length=length),)
                read.append(Prompt(ids=[*prompt, *behind], literals=literals, fills=fills))
        return read

    def _check(self, prompts: Prompts) -> None:
        """Checks all prompts before the first is tokenized. Raises InvalidRequest, or ContextLengthExceeded."""
        for prompt in prompts:
            if isinstance(prompt, str):
                self.check_length([prompt])
            else:
                self.check_ids(prompt)
        length = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        if length > (most := LONGEST_TOGETHER * self.max_characters):
            raise InvalidRequest(
                f"`prompt` holds {length} characters; a list may hold {most}, so send it in parts.", "prompt"
            )

    async def _join(self, literals: Sequence[str], lengths: Sequence[int], add_special_tokens: bool) -> Prompt:
        """Pieces of one text with holes of these lengths between them.

        Special tokens go only before the first piece and after the last.
        """
        pieces = await self._tokenizer.encode_parts(literals, add_special_tokens=add_special_tokens)
        ids, fills = list(pieces[0]), []
        for length, piece in zip(lengths, pieces[1:], strict=True):
            fills.append(Hole(offset=len(ids), length=length))
            ids += piece
        return Prompt(ids=ids, literals=literals, fills=tuple(fills))

    async def _from_ids(self, ids: Sequence[int], echo: bool, locate: bool) -> Prompt:
        """The text includes special tokens, since they are part of the prompt."""
        text = await self._tokenizer.decode_all(ids) if echo else ""
        starts = await asyncio.to_thread(self._starts, ids) if locate else ()
        return Prompt(ids=ids, literals=(text, ""), starts=starts)

    def _starts(self, ids: Sequence[int]) -> list[int]:
        detokenizer, starts, length = Detokenizer(self._tokenizer, skip_special=False), list[int](), 0
        for id_ in ids:
            text = detokenizer.push([id_], last=False)
            starts.append(length + detokenizer.lead)
            length += len(text)
        return starts


def _split(text: str) -> tuple[list[str], list[int]]:
    """The texts around the holes, and the holes' lengths in positions. Raises InvalidRequest for an invalid length."""
    pieces = _HOLE.split(text)
    lengths = [int(length) if _LENGTH.fullmatch(length) else 0 for length in pieces[1::2]]
    if not all(lengths):
        raise InvalidRequest("A hole in the prompt is written `<|fill:N|>`, N being 1 or more positions.", "prompt")
    return pieces[::2], lengths
