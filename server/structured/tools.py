"""The automaton of answers with tool calls, in the form of `server.text.hermes`. Parses nothing and sees no HTTP.

Calls are joined by a line break. Names are taken as they are: `server.schemas.tools` says which there may be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from server.structured.automaton import Automaton, determinised
from server.structured.budget import Budget, shallower
from server.structured.nfa import Nfa
from server.structured.refusals import Refused, TooSlow
from server.structured.regex.code_points import MAX_CODE_POINT
from server.structured.schema.keywords import unbounded
from server.structured.schema.schema import ANY_OBJECT, MAX_DEPTH, write_schema
from server.structured.schema.strings import dumped
from server.structured.schema.writer import Whitespace
from server.text.hermes import CLOSE, OPEN

ASCII = 0x80
"""The first code point that is none."""
MOST_NODES = 8_000
"""Nodes that the arguments of a function may take that is not strict: a call of any object takes some hundreds."""
MAX_TOLD = 300
"""Characters of a cause that a log is told."""
CallPolicy = Literal["auto", "required"]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
PLACE = "tools/"
"""What the places of refusals begin with that lie in a function; its name follows."""


@dataclass(frozen=True, slots=True)
class CallableFunction:
    """What a call may name."""

    name: str
    parameters: Any = None
    """The JSON Schema of its arguments; None if it takes none."""
    is_strict: bool = True
    """Whether a schema that is none, cannot be enforced, or takes too much, is refused; else arguments are held to
    less."""


def automaton(
    functions: Sequence[CallableFunction],
    policy: CallPolicy,
    budget: Budget,
    *,
    is_parallel: bool = True,
    content: Any = None,
    whitespace: Whitespace = "flexible",
    tell: Callable[[str], None] = lambda _: None,
) -> Automaton:
    """The automaton of answers by `policy`: with calls, or with at least one; one at most, unless `is_parallel`.

    Under `auto`, text that is no call comes first: any without the tag of a call, or a JSON text of the schema
    `content`, and then no calls. `whitespace` is that of arguments and of such a text. `tell` is called with a sentence
    for each function that is held to less than its schema.

    (A request whose `tool_choice` is `none` has no constraint. One that names a function requires it, as the only
    one, and not in parallel.) Raises Malformed, Unsupported or NoValue for what is strict, and TooLarge.
    """
    functions = [_affordable(function, whitespace, tell) for function in functions]

    def compiled(depth: int) -> Automaton:
        nfa = Nfa(budget)
        start = nfa.node()
        end = nfa.node()
        entry = start
        if policy == "auto" and content is None:
            entry = _write_text(nfa, start, end)
        elif policy == "auto":
            nfa.link(write_schema(nfa, start, content, depth, "#", whitespace), end)
        nfa.link(_write_calls(nfa, entry, functions, depth, whitespace, is_parallel=is_parallel), end)
        return determinised(nfa, start, end)

    return shallower(compiled, MAX_DEPTH, budget)


def _affordable(function: CallableFunction, whitespace: Whitespace, tell: Callable[[str], None]) -> CallableFunction:
    """The function; if it is not strict, with as much of its schema as can be enforced.

    That is all of it, or all but bounds and patterns, or that arguments are an object. Raises TooSlow: what is
    enforced does not depend on how busy the machine is.
    """
    if function.is_strict or function.parameters is None:
        return function
    place = f"{PLACE}{function.name}/parameters"
    why: list[str] = []
    for parameters in (function.parameters, unbounded(function.parameters)):
        nfa = Nfa(Budget(nodes=MOST_NODES))
        try:
            write_schema(nfa, nfa.node(), parameters, MAX_DEPTH, place, whitespace)
        except TooSlow:
            raise
        except Refused as error:
            why.append(str(type(error)(error.cause, error.place.replace(place, "#"))))
            continue
        if why:
            tell(_told(function, "its schema without bounds, patterns and what is not supported", why))
        return replace(function, parameters=parameters)
    tell(_told(function, "being an object", why))
    return replace(function, parameters=ANY_OBJECT)


def _told(function: CallableFunction, left: str, why: Sequence[str]) -> str:
    """Why the function's arguments are held to no more than `left`, in ASCII and with a bound: for a log."""
    causes = " and ".join(f"{cause!a:.{MAX_TOLD}}" for cause in dict.fromkeys(why))
    return f"the arguments of the tool {function.name!a}, which is not strict, are held to {left}: {causes}"


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
    nfa: Nfa,
    start: int,
    functions: Sequence[CallableFunction],
    depth: int,
    whitespace: Whitespace,
    *,
    is_parallel: bool,
) -> int:
    """One call, or more."""
    entry = nfa.node()
    nfa.link(start, entry)
    end = _write_call(nfa, entry, functions, depth, whitespace)
    if is_parallel:
        nfa.link(nfa.literal(end, b"\n"), entry)
    return end


def _write_call(nfa: Nfa, start: int, functions: Sequence[CallableFunction], depth: int, whitespace: Whitespace) -> int:
    head = nfa.literal(start, f"{OPEN}\n".encode())
    end = nfa.node()
    for function in functions:
        schema = NO_PARAMETERS if function.parameters is None else function.parameters
        named = nfa.literal(head, b'{"name": ' + dumped(function.name).encode() + b', "arguments": ')
        place = f"{PLACE}{function.name}/parameters"
        nfa.link(nfa.literal(write_schema(nfa, named, schema, depth, place, whitespace), b"}"), end)
    return nfa.literal(end, f"\n{CLOSE}".encode())
