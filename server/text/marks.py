"""Stand-ins for what looks like control tokens in people's own words, while a chat template renders these.

A template makes one text of everything, in which nobody could tell whose `<|eot_id|>` is whose. Knows texts and places;
no tokenizer, no template.
"""

import re
import secrets
from collections.abc import Iterable

_DIGITS = 20


class Marks:
    """Those of one conversation.

    A mark is a number that nobody can guess, so that nobody can write one; and of digits and hyphens, which templates
    do not trim, and whose case they cannot change.
    """

    def __init__(self) -> None:
        self._name = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
        self._texts: list[str] = []

    def put(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        """The text with marks in place of these parts of it, (start, stop) in characters, ascending."""
        pieces, end = [], 0
        for start, stop in spans:
            pieces += [text[end:start], f"-{self._name}-{len(self._texts)}-"]
            self._texts.append(text[start:stop])
            end = stop
        return "".join([*pieces, text[end:]])

    def open(self, text: str) -> str:
        """The text with a mark of its own kind at its end, for `cut`. Space stands behind it for templates to trim."""
        return f"{text.rstrip()}-{self._name}- "

    def cut(self, rendered: str, text: str) -> str | None:
        """What was rendered up to the end of the text that was opened; None where a template does not show that.

        The space at the end of `text` is part of it unless the template trims.
        """
        before, mark, behind = rendered.rpartition(f"-{self._name}-")
        if not mark:
            return None
        return before + text[len(text.rstrip()) :] if behind.startswith(" ") else before

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """The text around the marks in it, one piece more than there are, and what they stand for."""
        pieces = re.split(rf"-{self._name}-([0-9]+)-", text)
        return pieces[::2], [self._texts[int(number)] for number in pieces[1::2]]
