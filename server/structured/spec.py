"""What an answer must be, as data that can be sent, compared and hashed. Knows no automaton."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.structured.refusals import Malformed, TooLarge
from server.structured.schema.schema import ANY_OBJECT
from server.structured.schema.writer import Whitespace
from server.structured.tools import CallableFunction, CallPolicy

Kind = Literal["schema", "regex", "choice", "grammar", "tools"]
MAX_BYTES: dict[Kind, int] = {"schema": 65_536, "regex": 65_536, "choice": 262_144, "grammar": 65_536, "tools": 262_144}
"""Of a source. (A choice's own bound is of its texts, which JSON may write longer.)"""


@dataclass(frozen=True, slots=True)
class Spec:
    """Equal specs have the same answers. Made by the functions below, which raise Malformed or TooLarge."""

    kind: Kind
    source: str
    """In JSON, whose keys keep their order: an answer's properties follow it."""
    whitespace: Whitespace = "flexible"


def of_schema(schema: Any, whitespace: Whitespace = "flexible") -> Spec:
    """JSON texts that fit a JSON Schema, which may be a boolean."""
    return _spec("schema", schema, whitespace)


def of_object(whitespace: Whitespace = "flexible") -> Spec:
    """Any JSON object."""
    return of_schema(ANY_OBJECT, whitespace)


def of_regex(pattern: str) -> Spec:
    """Whole texts that the pattern matches."""
    return _spec("regex", pattern)


def of_choice(texts: Sequence[str]) -> Spec:
    """One of these texts."""
    return _spec("choice", list(texts))


def of_grammar(text: str) -> Spec:
    """Texts of a grammar, in EBNF or Lark's form."""
    return _spec("grammar", text)


def of_tools(
    functions: Sequence[CallableFunction],
    policy: CallPolicy,
    whitespace: Whitespace = "flexible",
    *,
    is_parallel: bool = True,
    content: Any = None,
) -> Spec:
    """Answers with tool calls; the arguments are those of `server.structured.tools.automaton`."""
    return _spec(
        "tools",
        {
            "functions": [[function.name, function.parameters, function.is_strict] for function in functions],
            "policy": policy,
            "is_parallel": is_parallel,
            "content": content,
        },
        whitespace,
    )


def check_size(kind: Kind, num_bytes: int) -> None:
    """Raises TooLarge."""
    if num_bytes > MAX_BYTES[kind]:
        raise TooLarge(f"it has {num_bytes:,} bytes, and {MAX_BYTES[kind]:,} are allowed")


def _spec(kind: Kind, source: Any, whitespace: Whitespace = "flexible") -> Spec:
    try:
        text = json.dumps(source, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Malformed("it holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise TooLarge("so much is within each other that it cannot be read") from None
    check_size(kind, size)
    return Spec(kind, text, whitespace)
