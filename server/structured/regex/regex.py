r"""Reads regular expressions: what ECMAScript's, Python's and Rust's have in common. Knows syntax, but no automaton.

Back-references, which are no regular language, look-behind, word boundaries, Unicode properties and flags are refused
by name. Classes like `\d` are ECMAScript's.
"""

import re
from typing import NoReturn

from server.structured.refusals import Malformed, Unsupported
from server.structured.regex.code_points import MAX_CODE_POINT, Range, Ranges, complement, union
from server.structured.regex.expressions import (
    MAX_REPEAT,
    Anchor,
    Characters,
    Either,
    Expression,
    Joined,
    LookAhead,
    Repeated,
)

DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
SPACE = union(
    [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)]
    + [(code, code) for code in (0x202F, 0x205F, 0x3000, 0xFEFF)]
)
CLASSES = {
    "d": DIGIT,
    "w": WORD,
    "s": SPACE,
    "D": complement(DIGIT),
    "W": complement(WORD),
    "S": complement(SPACE),
}
CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
REFUSED = {"b": "word boundary", "B": "word boundary", "p": "Unicode property", "P": "Unicode property"}
REFUSED |= dict.fromkeys("123456789k", "back-reference")
GROUPS = {
    "<=": "look-behind",
    "<!": "look-behind",
    ">": "atomic group",
    "P=": "back-reference",
}
BOUNDS = re.compile(r"\{(\d+)(,(\d+)?)?\}", re.ASCII)
MAX_BOUND_DIGITS = 9
"""More repetitions than any text has."""
NAME = re.compile(r"P?<\w+>")
CODES = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")


def parsed(text: str) -> Expression:
    """The expression. Raises Malformed, or Unsupported."""
    try:
        return _Reader(text).whole()
    except RecursionError:
        raise Unsupported("a regex of so many groups within each other is not supported") from None


class _Reader:
    """Reads from left to right; each method takes what its name says."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> Expression:
        expression = self._either()
        if self._at < len(self._text):
            self._fail("a `)` without its `(`")
        return expression

    def _either(self) -> Expression:
        branches = [self._joined()]
        while self._take("|"):
            branches.append(self._joined())
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def _joined(self) -> Expression:
        items = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            items.append(self._repeated())
        return items[0] if len(items) == 1 else Joined(tuple(items))

    def _repeated(self) -> Expression:
        item = self._item()
        while bounds := self._bounds():
            least, most = bounds
            if self._take("+"):
                raise Unsupported("a possessive repetition is not supported")
            self._take("?")  # which match is found first does not matter
            if isinstance(item, Anchor | LookAhead):
                raise Unsupported("a repeated anchor or look-ahead is not supported")
            if most is not None and most < least:
                self._fail("a repetition whose bounds are the wrong way round")
            if max(least, most or 0) > MAX_REPEAT:
                raise Unsupported(f"a repetition of more than {MAX_REPEAT} is not supported")
            item = Repeated(item, least, most)
        return item

    def _bounds(self) -> tuple[int, int | None] | None:
        """How often the item before may come, if that is said."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = BOUNDS.match(self._text, self._at)
        if not found:
            return None
        self._at = found.end()
        if max(len(found[1]), len(found[3] or "")) > MAX_BOUND_DIGITS:
            raise Unsupported(f"a repetition's bounds of more than {MAX_BOUND_DIGITS} digits are not supported")
        least = int(found[1])
        return least, (int(found[3]) if found[3] else None) if found[2] else least

    def _item(self) -> Expression:
        letter = self._text[self._at]
        self._at += 1
        match letter:
            case "(":
                return self._group()
            case "[":
                return Characters(self._set())
            case ".":
                return Characters(complement(LINE_ENDS))
            case "^" | "$":
                return Anchor(letter == "^")
            case "*" | "+" | "?":
                self._fail(f"nothing that `{letter}` could repeat")
            case "\\":
                return Characters(self._escape(in_set=False))
        return Characters(((ord(letter), ord(letter)),))

    def _group(self) -> Expression:
        for sign in ("?=", "?!"):
            if self._take(sign):
                return LookAhead(self._grouped(), is_negative=sign == "?!")
        if self._take("?"):
            if name := NAME.match(self._text, self._at):
                self._at = name.end()
            elif not self._take(":"):
                kinds = (kind for start, kind in GROUPS.items() if self._text.startswith(start, self._at))
                raise Unsupported(f"{next(kinds, 'a flag in a group')} is not supported")
        return self._grouped()

    def _grouped(self) -> Expression:
        expression = self._either()
        if not self._take(")"):
            self._fail("a `(` without its `)`")
        return expression

    def _set(self) -> Ranges:
        is_complement = self._take("^")
        found: list[Range] = []
        while not self._take("]"):
            if self._text.startswith("[:", self._at):
                raise Unsupported("a POSIX class is not supported")
            first = self._member()
            is_range = self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at)
            if not is_range:
                found += first
                continue
            self._at += 1
            last = self._member()
            if any(len(end) != 1 or end[0][0] != end[0][1] for end in (first, last)):
                raise Unsupported("a class at the end of a range is not supported")
            if last[0][0] < first[0][0]:
                self._fail("a range whose ends are the wrong way round")
            found.append((first[0][0], last[0][0]))
        return complement(found) if is_complement else union(found)

    def _member(self) -> Ranges:
        if self._at >= len(self._text):
            self._fail("a `[` without its `]`")
        letter = self._text[self._at]
        self._at += 1
        return self._escape(in_set=True) if letter == "\\" else ((ord(letter), ord(letter)),)

    def _escape(self, *, in_set: bool) -> Ranges:
        if self._at >= len(self._text):
            self._fail("a `\\` with nothing behind it")
        if found := CODES.match(self._text, self._at):
            self._at = found.end()
            code = int(next(filter(None, found.groups())), 16)
            if code > MAX_CODE_POINT:
                self._fail("a code point that there is not")
            return ((code, code),)
        letter = self._text[self._at]
        self._at += 1
        if letter in CLASSES:
            return CLASSES[letter]
        if letter == "b" and in_set:
            return ((0x08, 0x08),)
        if letter in REFUSED:
            raise Unsupported(f"`\\{letter}` ({REFUSED[letter]}) is not supported")
        if letter not in CONTROLS and letter.isalnum():
            raise Unsupported(f"`\\{letter}` is not supported")
        code = CONTROLS.get(letter, ord(letter))
        return ((code, code),)

    def _take(self, sign: str) -> bool:
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _fail(self, what: str) -> NoReturn:
        raise Malformed(f"the regex has {what}, at character {self._at}")
