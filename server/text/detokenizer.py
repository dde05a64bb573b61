"""Incremental detokenization. Text that is returned is final: an incomplete UTF-8 character is held back."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from server.text.tokenizer import Tokenizer


class Detokenizer:
    """One answer's text from its blocks of ids. Special tokens are left out if `skip_special`.

    At most the first three bytes of a character are held back. Bytes that form no character are replaced at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._before: int | None = None
        """The last token that had any bytes."""
        self.lead = 0
        """Characters of the last push's text that come before its first token.

        They replace bytes that an earlier push held back and that form no character.
        """

    def push(self, ids: Sequence[int], *, last: bool) -> str:
        """The text that has become final; with `last`, all that is left."""
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
