"""Between strings and token ids: a checkpoint's own tokenizer, its chat template, and how single tokens are spelled."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from engine import LoadError


class Tokenizer:
    """A checkpoint's own tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # Truncation and padding would be changed under the feet of other threads by transformers' own calls.
        self._tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        if processor := self._backend.post_processor:
            # A token begins with its space, as it does where answers are read (`server.passage`).
            untrimmed = processor.__getstate__().replace(b'"trim_offsets":true', b'"trim_offsets":false')
            processor.__setstate__(untrimmed)
            self._backend.post_processor = processor
        added = self._backend.get_added_tokens_decoder()
        self._added = {id_: token.content for id_, token in added.items()}
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        # Whether special tokens are read is said of a tokenizer, not of a call. Made now: with a large vocabulary it
        # takes a third of a second in which no other thread runs.
        self._literal_backend = Backend.from_str(self._backend.to_str())
        self._literal_backend.encode_special_tokens = True
        decoder = self._backend.decoder
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

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

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """In a thread, since a long text takes a while; of the backend's calls, the batch alone lets go of the GIL."""
        encodings = await asyncio.to_thread(
            self._backend.encode_batch_fast, list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    async def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` does without adding any, but what is spelt like a special token is text as any other."""
        encodings = await asyncio.to_thread(
            self._literal_backend.encode_batch_fast, list(texts), add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    async def special_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where `encode` reads special tokens in each text: (start, stop) in characters, ascending."""
        encodings = await asyncio.to_thread(self._backend.encode_batch, list(texts), add_special_tokens=False)
        return [
            []
            if self._special_ids.isdisjoint(encoding.ids)
            else [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ in self._special_ids]
            for encoding in encodings
        ]

    async def locate(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """For each token that `encode` makes of a text, the characters before it, in that text."""
        encodings = await asyncio.to_thread(
            self._backend.encode_batch, list(texts), add_special_tokens=add_special_tokens
        )
        return [_ascending([start for start, _ in encoding.offsets]) for encoding in encodings]

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that are added before a text, and behind it."""
        encoding = self._backend.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]

    @property
    def kind(self) -> str:
        """The class that reads it, in transformers."""
        return type(self._tokenizer).__name__

    @property
    def roles(self) -> Mapping[str, str]:
        """The tokens that have a role, such as `eos_token`, by its name."""
        return {role: str(token) for role, token in self._tokenizer.special_tokens_map.items()}

    @property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        """Those that stand beside the vocabulary, control tokens among them."""
        return self._backend.get_added_tokens_decoder()

    @property
    def chat_template(self) -> str | None:
        """Of several, the one that conversations are rendered with."""
        return self._tokenizer.get_chat_template() if self.has_chat_template else None

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model's own chat template writes it. Raises whatever the template raises."""
        return str(
            self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(variables or {}),
            )
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The template's text up to where the answer begins. It writes the special tokens itself, so none are added."""
        return list(self._backend.encode(self.render(messages), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def without_special(self, ids: Sequence[int]) -> list[int]:
        return [id_ for id_ in ids if id_ not in self._special_ids]

    def bytes_of(self, id_: int) -> bytes:
        """What one token adds to a text; the name of a special one; nothing for an id that the tokenizer lacks."""
        if id_ in self._added:
            return self._added[id_].encode()
        if not self._is_byte_level:
            return self.decode([id_]).encode()
        letters = self._backend.id_to_token(id_) or ""
        return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in letters)

    def spell(self, id_: int) -> str:
        """One token as text. Parts of characters are `bytes:\\xe2`, as OpenAI writes them, to tell them apart."""
        raw = self.bytes_of(id_)
        if not raw:
            return f"token_id:{id_}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    async def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each as the vocabulary writes it, in a thread, since they may be many."""
        return await asyncio.to_thread(lambda: [self._backend.id_to_token(id_) or self.spell(id_) for id_ in ids])


def _ascending(starts: Sequence[int]) -> list[int]:
    """Special tokens at the end of a text are said to stand at its beginning."""
    return list(accumulate(starts, max))


def _byte_letters() -> dict[str, int]:
    """The byte behind each letter of GPT-2's printable alphabet."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
