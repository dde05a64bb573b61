"""The automaton of answers with tool calls, in the form of `server.text.hermes`. Parses nothing and sees no HTTP.

Calls are joined by a line break.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.structured.automaton import Automaton, determinised
from server.structured.budget import Budget, shallower
from server.structured.nfa import Nfa
from server.structured.refusals import Malformed, TooLarge
from server.structured.regex.code_points import MAX_CODE_POINT
from server.structured.schema.schema import MAX_DEPTH, write_schema
from server.structured.schema.strings import dumped
from server.structured.schema.writer import Whitespace
from server.text.hermes import CLOSE, OPEN

ASCII = 0x80
"""The first code point that is none."""
Choice = Literal["auto", "required"]
MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
PLACE = "tools/"
"""What the places of refusals begin with that lie in a tool; its name follows."""


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Any = None
    """The JSON Schema of its arguments; None if it takes none."""


def automaton(
    tools: Sequence[Tool],
    choice: Choice,
    budget: Budget,
    *,
    is_parallel: bool = True,
    content: Any = None,
    whitespace: Whitespace = "flexible",
) -> Automaton:
    """The automaton of answers by `choice`: with calls, or with at least one; one at most, unless `is_parallel`.

    Under `auto`, text that is no call comes first: any without the tag of a call, or a JSON text of the schema
    `content`, and then no calls. `whitespace` is that of arguments and of such a text.

    (A request whose choice is `none` has no constraint. One that names a tool requires it, as the only one, and not
    in parallel.)
    """
    _check(tools)

    def compiled(depth: int) -> Automaton:
        nfa = Nfa(budget)
        start = nfa.node()
        end = nfa.node()
        entry = start
        if choice == "auto" and content is None:
            entry = _write_text(nfa, start, end)
        elif choice == "auto":
            nfa.link(write_schema(nfa, start, content, depth, "#", whitespace), end)
        nfa.link(_write_calls(nfa, entry, tools, depth, whitespace, is_parallel=is_parallel), end)
        return determinised(nfa, start, end)

    return shallower(compiled, MAX_DEPTH, budget)


def _check(tools: Sequence[Tool]) -> None:
    if not tools:
        raise Malformed("there are no tools")
    if len(tools) > MAX_TOOLS:
        raise TooLarge(f"more than {MAX_TOOLS} tools")
    for tool in tools:
        if not NAME.fullmatch(tool.name):
            raise Malformed(f"a tool's name has 1 to 64 of the letters a-z, A-Z, 0-9, _ and -, not {tool.name!r:.200}")
    if len({tool.name for tool in tools}) < len(tools):
        raise Malformed("two tools have the same name")


def _write_text(nfa: Nfa, start: int, end: int) -> int:
    """Any text without the tag, up to `end`, or to calls, which begin at the node that is returned.

    Knuth, Morris and Pratt: node i is where the last i letters are the tag's first ones. Calls may begin at each of
    them, since a beginning of the tag may be text.
    """
    tag = OPEN.encode()
    nodes = [nfa.node() for _ in tag]
    calls = nfa.node()
    nfa.link(start, nodes[0])
    beyond_ascii = nfa.node()
    nfa.link(nfa.character(beyond_ascii, ((ASCII, MAX_CODE_POINT),)), nodes[0])
    for length, node in enumerate(nodes):
        nfa.link(node, end)
        nfa.link(node, calls)
        nfa.link(node, beyond_ascii)
        for byte in range(ASCII):
            read = tag[:length] + bytes([byte])
            behind = next(size for size in range(len(read), -1, -1) if read.endswith(tag[:size]))
            if behind < len(tag):
                nfa.edge(node, byte, byte, nodes[behind])
    return calls


def _write_calls(
    nfa: Nfa, start: int, tools: Sequence[Tool], depth: int, whitespace: Whitespace, *, is_parallel: bool
) -> int:
    """One call, or more."""
    entry = nfa.node()
    nfa.link(start, entry)
    end = _write_call(nfa, entry, tools, depth, whitespace)
    if is_parallel:
        nfa.link(nfa.literal(end, b"\n"), entry)
    return end


def _write_call(nfa: Nfa, start: int, tools: Sequence[Tool], depth: int, whitespace: Whitespace) -> int:
    head = nfa.literal(start, f"{OPEN}\n".encode())
    end = nfa.node()
    for tool in tools:
        schema = NO_PARAMETERS if tool.parameters is None else tool.parameters
        named = nfa.literal(head, b'{"name": ' + dumped(tool.name).encode() + b', "arguments": ')
        place = f"{PLACE}{tool.name}/parameters"
        nfa.link(nfa.literal(write_schema(nfa, named, schema, depth, place, whitespace), b"}"), end)
    return nfa.literal(end, f"\n{CLOSE}".encode())
