"""Tokens as text while they come. Text that is handed out is final: half a character waits for more."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from server.text.tokenizer import Tokenizer


class Detokenizer:
    """One answer's text from its blocks of ids, special tokens left out unless they are asked for.

    At most the three first bytes of a character wait for more: bytes that form none are replaced as they come.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._before: int | None = None
        """The last token that had a text."""
        self.lead = 0
        """Characters behind the text before the last push in which its first token has no part.

        They are those of bytes that have waited in vain for more.
        """

    def push(self, ids: Sequence[int], *, last: bool) -> str:
        """The text that is final now; at the last block, all that is left."""
        raw = b"".join(map(self._bytes, self._tokenizer.without_special(ids) if self._skip_special else ids))
        head = self._decoder.decode(raw[:1])
        waiting, _ = self._decoder.getstate()
        num_begun = len(head) + len(waiting.decode(errors="replace"))
        self.lead = max(num_begun - 1, 0)
        return head + self._decoder.decode(raw[1:], final=last)

    def _bytes(self, id_: int) -> bytes:
        raw = self._tokenizer.bytes_behind(id_, self._before)
        if raw:
            self._before = id_
        return raw
