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
    """The turns with the arguments of calls as objects, which templates expect, not as JSON text, as on the wire."""
    return [
        {**turn, "tool_calls": list(map(_with_object, turn["tool_calls"]))} if "tool_calls" in turn else turn
        for turn in turns
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, ARGUMENTS: parsed(function[ARGUMENTS])}}


def parsed(arguments: str) -> dict[str, Any] | str:
    """The object in the JSON text; the text itself if it is no object, nests too deep, or has non-finite numbers.

    Templates write the object as JSON again, so it must be possible to encode it.
    """
    try:
        value = json.loads(arguments)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and _depth(value) <= MAX_DEPTH else arguments


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
