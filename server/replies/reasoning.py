"""Tells an answer's reasoning from its content, in text that arrives in any pieces. What is handed out is final.

Reasoning stands between `<think>` and `</think>` at the beginning of an answer; a chat template may write the first tag
itself. White space round it is left out. An answer that begins otherwise is all content, whatever tags come later, and
one that ends before the second tag is all reasoning.
"""

from collections.abc import Sequence
from typing import Literal

from server.replies.stop_strings import overlap
from server.text.tokenizer import CLOSE_REASONING, OPEN_REASONING


class ReasoningReader:
    """Reads one answer."""

    def __init__(self, *, is_open: bool = False, close_id: int | None = None) -> None:
        """`is_open`: the prompt ends in reasoning, or its first tag. `close_id`: the second tag, if it is a token."""
        self._state: Literal["before", "inside", "behind", "content"] = "inside" if is_open else "before"
        self._held = ""
        """Text that is not final yet: the end of what was read."""
        self._num_read = 0
        """Characters of what was read."""
        self.start: int | None = None
        """Characters of the answer before its content; None as long as there is none."""
        self._has_reasoned = False
        """Whether any reasoning has been handed out."""
        self._close_id = close_id
        self._num_ids = 0
        self._num_until_close: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the reasoning so far, its tags included; 0 if the second tag is no token."""
        if self._close_id is None or not self._has_reasoned:
            return 0
        return self._num_ids if self._num_until_close is None else self._num_until_close

    def push(self, text: str, ids: Sequence[int] = (), *, last: bool) -> tuple[str, str]:
        """Reasoning and content that have become final. `ids`: the tokens that brought the text."""
        if self._num_until_close is None and self._close_id in ids:
            self._num_until_close = self._num_ids + ids.index(self._close_id) + 1
        self._num_ids += len(ids)
        self._held += text
        self._num_read += len(text)
        if self._state == "before":
            self._begin(last)
        reasoning = self._inside(last) if self._state == "inside" else ""
        if self._state == "behind" and (stripped := self._held.lstrip()):
            self._held, self._state = stripped, "content"
        content = ""
        if self._state == "content":
            if self.start is None:
                self.start = self._num_read - len(self._held)
            content, self._held = self._held, ""
        self._has_reasoned |= bool(reasoning)
        return reasoning, content

    def _begin(self, last: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN_REASONING):
            self._held, self._state = begun.removeprefix(OPEN_REASONING), "inside"
        elif last or not OPEN_REASONING.startswith(begun):
            self._state = "content"

    def _inside(self, last: bool) -> str:
        before, tag, behind = self._held.partition(CLOSE_REASONING)
        if tag:
            self._held, self._state = behind, "behind"
            final = before.rstrip()
        else:
            final = self._held if last else self._held[: len(self._held) - overlap(self._held, CLOSE_REASONING)]
            final = final.rstrip()
            self._held = self._held[len(final) :]
        return final if self._has_reasoned else final.lstrip()
