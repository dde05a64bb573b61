"""Tells which of an answer's tokens its content shows, where calls and reasoning are told apart from it.

A token is the content's if the content shows a part of it: one that ends in a call's tag is its text's, and one that
ends a call and begins a text too. Knows offsets alone, and takes tokens before or with the text that shows them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from server.replies.passage import Token

_offset = attrgetter("offset")


class ContentTokens:
    """Reads one answer."""

    def __init__(self) -> None:
        self._waiting: list[Token] = []
        """Tokens behind the content so far, in order."""

    def push(self, tokens: Sequence[Token]) -> None:
        """Adds tokens, which stand behind those that were there before."""
        self._waiting += tokens

    def within(self, start: int, end: int) -> list[Token]:
        """The tokens of the content that stands between these characters of the answer, behind all content so far."""
        if start == end:
            return []
        first = bisect_left(self._waiting, start, key=_offset)
        is_cut_into = first == len(self._waiting) or self._waiting[first].offset > start
        last = bisect_left(self._waiting, end, key=_offset)
        found = self._waiting[max(first - is_cut_into, 0) : last]
        del self._waiting[:last]
        return found

    def rest(self) -> list[Token]:
        """All that are left: of an answer that ends in content, tokens without text at its end."""
        found, self._waiting = self._waiting, []
        return found
