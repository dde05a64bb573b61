"""Token ids as text, by a checkpoint's own tokenizer: whole sequences, single tokens, and the bytes of each.

Unlike encoding (`server.text.encoder`) this is bounded by the number of tokens, so it happens in this process.
"""

import asyncio
import re
from collections.abc import Sequence

from tokenizers import Tokenizer as Backend

from engine import LoadError


class Decoder:
    """What the tokens of one vocabulary are as text. Thread-safe."""

    def __init__(self, backend: Backend) -> None:
        """Raises LoadError for a tokenizer whose decoding may take forever."""
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {id_: token.content for id_, token in added.items()}
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        self._is_byte_level = b'"ByteLevel"' in decoder
        self._has_byte_tokens = b'"ByteFallback"' in decoder
        if b'"Regex"' in decoder:
            raise LoadError("its decoder searches by a regular expression, which could hang the server")
        self._bytes: dict[int, bytes] = {}
        """Cache of each token's bytes; at most as many entries as the vocabulary."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included. Bytes that are no whole characters become U+FFFD."""
        if self._is_byte_level:
            return b"".join(map(self.bytes_of, ids)).decode(errors="replace")
        return self._backend.decode(ids, skip_special_tokens=False)

    async def decode_all(self, ids: Sequence[int]) -> str:
        """The text of the ids, decoded in a thread because there may be many."""
        return await asyncio.to_thread(self.decode, ids)

    def without_special(self, ids: Sequence[int]) -> list[int]:
        """The ids in order, those of special tokens left out."""
        return [id_ for id_ in ids if id_ not in self._special_ids]

    def bytes_of(self, id_: int) -> bytes:
        """The bytes that a token adds to a text. For a special token its name; empty for an unknown id."""
        known = self._bytes.get(id_)
        if known is None:
            known = self._bytes[id_] = self._read_bytes(id_)
        return known

    @property
    def is_byte_level(self) -> bool:
        """Whether each token adds the same bytes to a text wherever it stands."""
        return self._is_byte_level

    def spellings(self, size: int) -> list[bytes]:
        """The bytes of the tokens 0 to `size` - 1; empty for special tokens and unknown ids, which no text holds."""
        return [b"" if id_ in self._special_ids else self.bytes_of(id_) for id_ in range(size)]

    def bytes_behind(self, id_: int, before: int | None) -> bytes:
        """The bytes of the token after the token `before`, on which its leading space may depend."""
        if before is None or self._is_byte_level or self._byte_token(id_):
            return self.bytes_of(id_)
        return self.decode([before, id_])[len(self.decode([before])) :].encode()

    def _read_bytes(self, id_: int) -> bytes:
        if id_ in self._added:
            return self._added[id_].encode()
        if not self._is_byte_level:
            return self._byte_token(id_) or self.decode([id_]).encode()
        letters = self._backend.id_to_token(id_) or ""
        if all(letter in _BYTES for letter in letters):
            return bytes(_BYTES[letter] for letter in letters)
        return letters.encode()

    def _byte_token(self, id_: int) -> bytes:
        """The byte of a token like `<0xE2>`; empty for other tokens, and if the decoder has no byte fallback."""
        if not self._has_byte_tokens:
            return b""
        name = _BYTE_TOKEN.fullmatch(self._backend.id_to_token(id_) or "")
        return bytes.fromhex(name[1]) if name else b""

    def spell(self, id_: int) -> str:
        """One token as text. Bytes that are no whole characters are written as `bytes:\\xe2`, as OpenAI does."""
        raw = self.bytes_of(id_)
        if not raw:
            return f"token_id:{id_}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    async def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it, looked up in a thread because there may be many."""
        return await asyncio.to_thread(lambda: [self._backend.id_to_token(id_) or self.spell(id_) for id_ in ids])


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of GPT-2's printable alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
