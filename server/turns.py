"""The texts within the turns of a conversation as a template is given them, wherever they stand: content, names, calls.

Knows strings, lists and mappings; nothing of roles or templates.
"""

from collections.abc import Callable
from typing import Any

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
