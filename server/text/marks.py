"""Placeholders for control tokens that users wrote in their messages, while a chat template renders these.

A template renders one text. In it, an `<|eot_id|>` of a message could not be told from one of the template. Knows texts
and character positions, but no tokenizer and no template.
"""

import re
import secrets
from collections.abc import Iterable

_DIGITS = 20


class Marks:
    """The marks of one conversation.

    A mark contains a random number, so that no message can forge one. It has only digits and hyphens, which templates
    do not trim and which have no case to change.
    """

    def __init__(self) -> None:
        self._name = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
        self._texts: list[str] = []

    def put(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        """The text with a mark in place of each span: (start, stop) in characters, ascending."""
        pieces, end = [], 0
        for start, stop in spans:
            pieces += [text[end:start], f"-{self._name}-{len(self._texts)}-"]
            self._texts.append(text[start:stop])
            end = stop
        return "".join([*pieces, text[end:]])

    def open(self, text: str) -> str:
        """The text with an end mark, for `cut`. A space follows the mark: it shows whether the template trims."""
        return f"{text.rstrip()}-{self._name}- "

    def cut(self, rendered: str, text: str) -> str | None:
        """The rendered text up to the end of `text`, which `open` marked; None if the template left the mark out.

        White space at the end of `text` is kept unless the template trims.
        """
        before, mark, behind = rendered.rpartition(f"-{self._name}-")
        if not mark:
            return None
        return before + text[len(text.rstrip()) :] if behind.startswith(" ") else before

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """The pieces of text around the marks, one more than there are marks, and the texts that the marks replaced."""
        pieces = re.split(rf"-{self._name}-([0-9]+)-", text)
        return pieces[::2], [self._texts[int(number)] for number in pieces[1::2]]
