r"""Reads tool calls out of an answer's text, which arrives in any pieces. What is handed out is final.

A call is `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>` (`server.text.hermes`). Neither its tags nor its
outer braces are handed out. The arguments are handed out as the text that they are: they are not parsed, and so not
completed, mended or put in another order. Knows texts alone; whether a call is valid is for the constraint
(`server.structured.tools`) to ensure.

Texts that no constraint has made are read as well:

- What follows a tag and is no beginning of a call is content, and so is that tag.
- An answer that ends before a call's arguments begin does not make this call. One that ends within them has made a call
  of arguments that are no JSON; `is_amid_call` tells.
- White space before a call, and between and behind calls, is no content.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from server.replies.stop_strings import overlap
from server.text.hermes import CLOSE, OPEN

MAX_NAME_LENGTH = 512
"""Characters of a name as JSON writes it; what is longer is no call's name."""

_HEAD = ("{", '"name"', ":", None, ",", '"arguments"', ":")
"""What stands between a tag and the arguments, white space apart; None is the name, a JSON string."""
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OUTSIDE_STRING = re.compile(r'[{}\[\]",<]')
_INSIDE_STRING = re.compile(r'["\\]')


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """What a piece of text adds to one call. The first delta of a call has the name, and no arguments yet."""

    index: int
    """Number of the call in its answer, from 0."""
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of content, which stands in the answer as it is."""

    text: str
    start: int
    """Characters of the answer before it."""

    @property
    def end(self) -> int:
        """The same behind it."""
        return self.start + len(self.text)


Part: TypeAlias = Content | CallDelta


def whole_calls(deltas: Iterable[CallDelta]) -> list[CallDelta]:
    """The calls that the deltas of one answer add up to, each with its name and all of its arguments."""
    calls: list[CallDelta] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(delta)
        else:
            call = calls[delta.index]
            calls[delta.index] = replace(call, arguments=call.arguments + delta.arguments)
    return calls


class ToolCallReader:
    """Reads one answer."""

    def __init__(self) -> None:
        self._state: Literal["content", "head", "arguments", "tail"] = "content"
        self._held = ""
        """Text that is not final yet: the end of what was read."""
        self._num_read = 0
        """Characters of what was read."""
        self._space = ""
        """White space before the tag that was read last: content, should no call follow the tag."""
        self.num_calls = 0
        """Calls so far."""
        self._depth = 0
        """Open brackets of the arguments."""
        self._is_in_string = False

    @property
    def is_amid_call(self) -> bool:
        """Whether the text so far ends in a call whose arguments are not complete."""
        return self._state in ("head", "arguments")

    def push(self, text: str, *, last: bool) -> list[Part]:
        """The parts that have become final, in order, none of them empty.

        With `last`, that is all that is left of a content, and of arguments but for half an escape.
        """
        self._held += text
        self._num_read += len(text)
        parts: list[Part] = []
        while True:
            before = self._state
            parts += self._read(last)
            if self._state == before:
                return _joined(parts)

    def _read(self, last: bool) -> Iterator[Part]:
        """Reads on until the state changes, or to the end of the text."""
        match self._state:
            case "content":
                yield from self._read_content(last)
            case "head":
                yield from self._read_head()
            case "arguments":
                yield from self._read_arguments()
            case "tail":
                self._read_tail()

    def _read_content(self, last: bool) -> Iterator[Part]:
        place = self._num_read - len(self._held)
        start = self._held.find(OPEN)
        if start >= 0:
            content = self._held[:start].rstrip()
            self._space = self._held[len(content) : start]
            self._held, self._state = self._held[start + len(OPEN) :], "head"
        elif last:
            content = self._held.rstrip() if self.num_calls else self._held
            self._held = ""
        else:
            content = self._held[: len(self._held) - overlap(self._held, OPEN)].rstrip()
            self._held = self._held[len(content) :]
        if content:
            yield Content(content, place)

    def _read_head(self) -> Iterator[Part]:
        match _head(self._held):
            case None:
                return
            case "":
                tag = self._space + OPEN
                yield Content(tag, self._num_read - len(self._held) - len(tag))
                self._state = "content"
            case end, name:
                yield CallDelta(index=self.num_calls, name=name)
                self.num_calls += 1
                self._held, self._state, self._depth, self._is_in_string = self._held[end:], "arguments", 0, False

    def _read_arguments(self) -> Iterator[Part]:
        end, is_over = self._scan()
        # Behind a value that is no object or array, white space may be that before the closing brace.
        final = self._held[:end] if self._depth or self._is_in_string else self._held[:end].rstrip()
        if final:
            yield CallDelta(index=self.num_calls - 1, arguments=final)
        self._held = self._held[end if is_over else len(final) :]
        if is_over:
            self._state = "tail"

    def _scan(self) -> tuple[int, bool]:
        """(characters that belong to the arguments, whether these end there); an escape is not cut in two."""
        place = 0
        while True:
            found = (_INSIDE_STRING if self._is_in_string else _OUTSIDE_STRING).search(self._held, place)
            if not found:
                return len(self._held), False
            letter, place = found[0], found.end()
            match letter:
                case "\\" if place == len(self._held):
                    return place - 1, False
                case "\\":
                    place += 1
                case '"':
                    self._is_in_string = not self._is_in_string
                case "{" | "[":
                    self._depth += 1
                case "<":  # in no JSON: the call ends amid its arguments
                    return place - 1, True
                case "}" | "]" if self._depth > 1:
                    self._depth -= 1
                case "}" | "]" if self._depth == 1:
                    self._depth = 0
                    return place, True
                case "}" | "]" | "," if self._depth == 0:
                    return place - 1, True

    def _read_tail(self) -> None:
        """Drops what follows the arguments, up to the closing tag, or to the next call's tag."""
        starts = {tag: start for tag in (CLOSE, OPEN) if (start := self._held.find(tag)) >= 0}
        if starts:
            first = min(starts, key=lambda tag: starts[tag])
            self._held = self._held[starts[first] + (len(CLOSE) if first == CLOSE else 0) :]
            self._state = "content"
        else:
            self._held = self._held[-len(CLOSE) :]


def _joined(parts: list[Part]) -> list[Part]:
    """The parts, with pieces of content that follow each other made one."""
    joined: list[Part] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Content) and isinstance(before, Content):
            joined[-1] = Content(before.text + part.text, before.start)
        else:
            joined.append(part)
    return joined


def _head(text: str) -> tuple[int, str] | Literal[""] | None:
    """(characters before the arguments, the name); "" if no call begins so, None if more text is needed to tell."""
    place, name = 0, ""
    for item in _HEAD:
        place = _behind_space(text, place)
        expected = item or _name_at(text, place)
        if not expected:
            return expected
        if not text.startswith(expected, place):
            return None if expected.startswith(text[place:]) else ""
        if item is None:
            name = json.loads(expected)
        place += len(expected)
    place = _behind_space(text, place)
    return (place, name) if place < len(text) else None


def _name_at(text: str, place: int) -> str | None:
    """The name as JSON writes it; "" if none can stand there, None if more text is needed to tell."""
    found = _STRING.match(text, place)
    if found is None:
        may_begin = text[place : place + 1] in ("", '"') and len(text) - place < MAX_NAME_LENGTH
        return None if may_begin else ""
    try:
        json.loads(found[0]).encode()
    except ValueError:  # an escape that there is none of, or half a surrogate pair
        return ""
    return found[0] if len(found[0]) <= MAX_NAME_LENGTH else ""


def _behind_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found
    return found.end()
