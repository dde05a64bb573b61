"""The turns of a conversation as a template receives them: their texts, at any depth, and their tool calls.

Knows strings, lists and mappings, but not roles or templates.
"""

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
"""Deepest nesting of objects and arrays in the arguments of a call; the same as in a body."""
ARGUMENTS = "arguments"
"""The field of a call with its arguments: the only mapping whose keys the user chooses."""


class NoObject(Exception):
    """The arguments of a call are not the JSON text of an object."""

    def __init__(self, turn: int, call: int) -> None:
        """`turn`, `call`: the call's place, from 0."""
        super().__init__(turn, call)
        self.turn = turn
        self.call = call


def texts(turns: Any) -> list[str]:
    """All texts in the turns, in order."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    changed(turns, note)
    return found


def changed(turns: Any, change: Callable[[str], str], *, with_keys: bool = False) -> Any:
    """A copy in which `change` is applied to each text, in the order of `texts`. Keys change only if `with_keys`."""
    match turns:
        case str():
            return change(turns)
        case list():
            return [changed(item, change, with_keys=with_keys) for item in turns]
        case dict():
            return {
                change(key) if with_keys else key: changed(item, change, with_keys=with_keys or key == ARGUMENTS)
                for key, item in turns.items()
            }
        case _:
            return turns


def with_objects(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with the arguments of calls as objects, which templates expect, not as JSON text, as on the wire.

    Raises NoObject.
    """
    return [
        {**turn, "tool_calls": [_with_object(call, place, number) for number, call in enumerate(turn["tool_calls"])]}
        if "tool_calls" in turn
        else turn
        for place, turn in enumerate(turns)
    ]


def _with_object(call: dict[str, Any], turn: int, number: int) -> dict[str, Any]:
    function = call["function"]
    arguments = parsed(function[ARGUMENTS])
    if arguments is None:
        raise NoObject(turn, number)
    return {**call, "function": {**function, ARGUMENTS: arguments}}


def parsed(arguments: str) -> dict[str, Any] | None:
    """The object in the JSON text, an empty one of an empty text.

    None if it is no object, nests too deep, or has non-finite numbers: templates write the object as JSON again, so it
    must be possible to encode it.
    """
    try:
        value = json.loads(arguments or "{}")
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _depth(value) <= MAX_DEPTH else None


def _depth(value: object) -> int:
    """Depth to which objects and arrays nest."""
    depth, level = 0, [value]
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth
