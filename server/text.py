"""Between strings and token ids: the tokenizer, blocks turned into text as they come, stop strings.

Text that is handed out is final: half a character and what may be the start of a stop string wait for more.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from engine import LoadError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoding shows for bytes that are not (yet) a character."""


class Tokenizer:
    """A checkpoint's own tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # Truncation and padding would be changed under the feet of other threads by transformers' own calls.
        self._tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From `tokenizer.json`, or `vocab.json` and `merges.txt`; never runs code of the checkpoint."""
        if (folder / "tokenizer.json").is_file():
            kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            kind = Qwen2Tokenizer  # Dream's checkpoints have Qwen2's files and no others
        else:
            raise LoadError(f"{folder} has no tokenizer.json, so its tokens cannot be read or written as text")
        try:
            return cls(kind.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise LoadError(f"the tokenizer in {folder} cannot be read: {error}") from error

    async def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """In a thread, since a long text takes a while; of the backend's calls, the batch alone lets go of the GIL."""
        encodings = await asyncio.to_thread(self._backend.encode_batch_fast, list(texts))
        return [encoding.ids for encoding in encodings]

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The template's text up to where the answer begins. It writes the special tokens itself, so none are added."""
        conversation = [dict(message) for message in messages]
        text = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return list(self._backend.encode(str(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def without_special(self, ids: Sequence[int]) -> list[int]:
        return [id_ for id_ in ids if id_ not in self._special_ids]


class Detokenizer:
    """One answer's text from its blocks of ids, special tokens left out.

    Tokens are decoded after those of the last block that ended on a whole character, since spacing depends on what
    comes before; the text of these is then taken off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []
        self._num_sent = 0
        """Characters of the pending ids' text that were handed out already."""

    def push(self, ids: Sequence[int], *, last: bool) -> str:
        """The text that is final now; at the last block, all that is left."""
        self._pending += self._tokenizer.without_special(ids)
        before = len(self._tokenizer.decode(self._context))
        text = self._tokenizer.decode(self._context + self._pending)[before:]
        final = text if last else text.rstrip(REPLACEMENT)
        fresh = final[self._num_sent :]
        if len(final) < len(text):
            self._num_sent = len(final)
        elif self._pending:
            self._context, self._pending, self._num_sent = self._pending, [], 0
        return fresh


class StopStrings:
    """Cuts an answer before the first stop string, wherever its blocks split it.

    Of several, the one that is complete first counts, as if the text had come letter by letter: so the cut does not
    depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str, *, last: bool) -> tuple[str, bool]:
        """(the text that is final now, whether a stop string was found)."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start = min(found)
            return text[:start], True
        kept = len(text) if last else len(text) - self._longest_start(text)
        self._held = text[kept:]
        return text[:kept], False

    def _longest_start(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string starts with."""
        longest = max(map(len, self._stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
