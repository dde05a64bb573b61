"""Constraints that are made to take long or much: each is compiled or refused within its time."""

from contextlib import suppress
from pathlib import Path

import pytest

from engine import DEMO_MODEL
from server.structured import spec
from server.structured.budget import Budget
from server.structured.compiler import automaton
from server.structured.lift import lift
from server.structured.refusals import Refused
from server.structured.tools import CallableFunction
from server.structured.vocabulary import Vocabulary
from server.text.tokenizer import Tokenizer

from .calls import clock_of_calls

OVERRUN = 0.6
"""The longest work between two looks at the clock, in seconds of a clock that counts calls."""
NULL = {"type": "null"}


def chain(levels, keyword, times):
    """References, each of which leads to so many of the next level."""
    definitions = {f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}] * times} for level in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{levels}": NULL}}


def properties(count, value):
    return {"type": "object", "properties": {f"p{number}": value for number in range(count)}}


def nested(levels, key, leaf):
    for _ in range(levels):
        leaf = {key: [leaf, {}]}
    return leaf


SCHEMAS = {
    "long texts": {"type": "string", "maxLength": 4096},
    "many long texts": {"type": "array", "items": {"type": "string", "maxLength": 100}, "maxItems": 20},
    "a map of long texts": {"additionalProperties": {"type": "string", "maxLength": 200}, "maxProperties": 100},
    "branches that differ": {"oneOf": [{"minimum": 10 * number, "maximum": 10 * number + 5} for number in range(900)]},
    "branches by name": {"oneOf": [{"required": [f"n{number}"]} for number in range(300)]},
    "parts": {"allOf": [properties(1, NULL) | {"required": [f"p{number}"]} for number in range(700)]},
    "parts in parts": nested(300, "allOf", NULL),
    "choices of choices": {"allOf": [{"anyOf": [{"minimum": number}, {"maximum": 1}]} for number in range(40)]},
    "objects in an enum": {"enum": [{"a": number} for number in range(5000)]},
    "distinct values": {"items": {"enum": list(range(3000))}, "uniqueItems": True, "maxItems": 1000},
    "a long distinct list": {"enum": [list(range(9000))], "uniqueItems": True},
    "references that multiply": chain(12, "anyOf", 8),
    "references that add up": chain(12, "allOf", 8),
    "arrays that multiply": chain(6, "prefixItems", 8),
    "a pattern and a length": {"type": "string", "pattern": "^(a|b)*a(a|b){9}$", "maxLength": 900},
    "patterns that remember": {"type": "string", "pattern": "[ab]*a[ab]{13}"},
    "many properties": properties(1400, {"type": "string"}),
    "many free properties": properties(60, {}),
    "large numbers": properties(60, {"type": "number", "minimum": -1e300, "maximum": 1e300}),
    "multiples": {"type": "integer", "multipleOf": 997, "minimum": -(10**60), "maximum": 10**60},
}
REGEXES = {
    "counts in counts": "((a{0,60}){0,60}){0,60}",
    "loops in loops": "(((a|b)*c)*d)*" * 300,
    "wild cards": "(.*a.*b){90}",
    "a large class": f"[{''.join(chr(0x100 + 3 * number) for number in range(8000))}]{{1,200}}",
    "brackets": "[" * 65_000,
    "groups": "(" * 65_000,
}
GRAMMARS = {
    "rules that multiply": "start: a\n"
    + "".join(f"{a}: {b} {b} {b}\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True))
    + 'l: "x"',
    "a rule of itself": 'root ::= root root root | "a" | "(" root ")"',
}
TOOLS = [CallableFunction(f"t{number}", properties(2, {"type": "object"})) for number in range(128)]
CONSTRAINTS = {
    **{name: spec.of_schema(one) for name, one in SCHEMAS.items()},
    **{name: spec.of_regex(one) for name, one in REGEXES.items()},
    **{name: spec.of_grammar(one) for name, one in GRAMMARS.items()},
    "tools": spec.of_tools(TOOLS, "auto"),
}


@pytest.fixture(scope="module")
def vocabulary():
    tokenizer = Tokenizer.load(Path(DEMO_MODEL))
    yield Vocabulary(tokenizer.spellings(max(tokenizer.added_tokens) + 1))
    tokenizer.close()


@pytest.mark.parametrize("seconds", [0.05, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_ends_in_time(name, vocabulary, seconds):
    with clock_of_calls() as clock, suppress(Refused):
        budget = Budget(seconds=seconds)
        lift(automaton(CONSTRAINTS[name], budget), vocabulary, [0], budget)
    assert clock.seconds() < seconds + OVERRUN
