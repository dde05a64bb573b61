"""The turns of a conversation as a template is given them: the texts in them, wherever they stand, and calls.

Knows strings, lists and mappings; nothing of roles or templates.
"""

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
"""Objects and arrays inside each other in the arguments of a call; as in a body."""
ARGUMENTS = "arguments"
"""Of a call: the one mapping whose keys are people's words too."""


def texts(turns: Any) -> list[str]:
    """All of them, in order."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    changed(turns, note)
    return found


def changed(turns: Any, change: Callable[[str], str], *, with_keys: bool = False) -> Any:
    """The same with `change` of each text in its place, asked for in the order of `texts`."""
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
    """The same with the arguments of calls as templates expect them, not as the wire has them, in JSON."""
    return [
        {**turn, "tool_calls": list(map(_with_object, turn["tool_calls"]))} if "tool_calls" in turn else turn
        for turn in turns
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, ARGUMENTS: parsed(function[ARGUMENTS])}}


def parsed(arguments: str) -> dict[str, Any] | str:
    """An object, which is what templates write as JSON; the text itself where it is none that could be written."""
    try:
        value = json.loads(arguments)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and _depth(value) <= MAX_DEPTH else arguments


def _depth(value: object) -> int:
    """Objects and arrays inside each other."""
    depth, level = 0, [value]
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth
