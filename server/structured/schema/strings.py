"""JSON strings of given lengths, patterns and formats. Knows how JSON spells characters; lengths count characters."""

import json
from typing import Any

from server.structured.automaton import Automaton, determinised, difference, embed, intersection
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue, TooLarge, Unsupported, placed
from server.structured.regex import expressions, regex
from server.structured.regex.code_points import ALL, Ranges, complement
from server.structured.regex.code_points import intersection as common
from server.structured.regex.expressions import MAX_REPEAT, Characters, Expression, Repeated
from server.structured.schema.formats import FORMATS
from server.structured.schema.keywords import inside

PLAIN = complement([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
"""Code points that may stand in a JSON string as they are."""
SHORT = {0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0C: b"f", 0x0D: b"r", 0x22: b'"', 0x5C: b"\\"}
_HEX = ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
_HEX_BUT_D = ((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66))
_NAME = Repeated(Characters(PLAIN), 0, None)
"""A name without escapes, so that no name has two spellings."""
_Key = tuple[str | None, str | None, int, int | None]


def dumped(value: Any) -> str:
    """A value that holds no others, as JSON text. Characters are not escaped unless they must be."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which has no spelling but an escape
        return json.dumps(value)
    return text


def freely(nfa: Nfa, start: int, ranges: Ranges) -> int:
    """Any one character in any spelling that JSON has, halves of surrogate pairs left out."""
    assert ranges == ALL
    end = nfa.character(start, PLAIN)
    escaped = nfa.literal(start, b"\\")
    for letter in b'"\\/bfnrt':
        nfa.edge(escaped, letter, letter, end)
    unit = nfa.literal(escaped, b"u")
    second, third, fourth, behind_d = (nfa.node() for _ in range(4))
    for low, high in _HEX_BUT_D:
        nfa.edge(unit, low, high, second)
    for letter in b"Dd":
        nfa.edge(unit, letter, letter, behind_d)
    nfa.edge(behind_d, ord("0"), ord("7"), third)
    for low, high in _HEX:
        nfa.edge(second, low, high, third)
        nfa.edge(third, low, high, fourth)
        nfa.edge(fourth, low, high, end)
    return end


def shortly(nfa: Nfa, start: int, ranges: Ranges) -> int:
    """A character of these ranges: escaped only where it must be, and in two letters."""
    end = nfa.character(start, common(ranges, PLAIN))
    for code, letter in SHORT.items():
        if any(low <= code <= high for low, high in ranges):
            nfa.link(nfa.literal(start, b"\\" + letter), end)
    return end


class Strings:
    """Writes strings into `nfa`. Equal demands are compiled once."""

    def __init__(self, nfa: Nfa) -> None:
        self._nfa = nfa
        self._known: dict[_Key, Automaton] = {}
        self._names: dict[tuple[_Key, frozenset[str]], Automaton] = {}

    def write(self, start: int, schema: dict[str, Any], place: str) -> int:
        """A whole string with its quotes."""
        least, most = _lengths(schema, place)
        inner = self._nfa.literal(start, b'"')
        kind = schema.get("format")
        if "pattern" in schema or kind in FORMATS:
            inner = embed(self._nfa, inner, self._automaton(schema, place))
        else:
            anything = Repeated(Characters(ALL), least, most)
            inner = expressions.write(self._nfa, inner, anything, freely)
        return self._nfa.literal(inner, b'"')

    def write_name(self, start: int, schema: dict[str, Any], taken: list[str], place: str) -> int:
        """The name of a property with its quotes, and none of those that are `taken`."""
        further = schema.keys() - {"pattern", "minLength", "maxLength"}
        if further - {"type"} or schema.get("type", "string") not in ("string", ["string"]):
            raise Unsupported("of names, only `pattern` and lengths are supported", place)
        key = _key(schema, place), frozenset(taken)
        if key not in self._names:
            self._names[key] = self._without(taken, self._named(schema, place))
        inner = embed(self._nfa, self._nfa.literal(start, b'"'), self._names[key])
        return self._nfa.literal(inner, b'"')

    def _without(self, taken: list[str], names: Automaton) -> Automaton:
        if not taken:
            return names
        nfa = Nfa(self._nfa.budget)
        first = nfa.node()
        declared = determinised(nfa, first, nfa.words(first, [dumped(name).encode()[1:-1] for name in taken]))
        return difference(names, declared, self._nfa.budget)

    def _named(self, schema: dict[str, Any], place: str) -> Automaton:
        if "pattern" in schema:
            return self._automaton(schema, place)
        least, most = _lengths(schema, place)
        return expressions.automaton(Repeated(_NAME.item, least, most), self._nfa.budget, is_search=False)

    def _automaton(self, schema: dict[str, Any], place: str) -> Automaton:
        """What stands between the quotes; all that is demanded at once."""
        key = _key(schema, place)
        if key not in self._known:
            self._known[key] = self._compiled(key, place)
        return self._known[key]

    def _compiled(self, key: _Key, place: str) -> Automaton:
        pattern, kind, least, most = key
        budget = self._nfa.budget
        demands: list[tuple[Expression, bool]] = []
        if kind in FORMATS:
            demands.append((regex.parsed(FORMATS[kind]), False))
        if pattern is not None:
            with placed(inside(place, "pattern")):
                demands.append((regex.parsed(pattern), True))
        if least or most is not None:
            demands.append((Repeated(Characters(ALL), least, most), False))
        try:
            found, *others = (
                expressions.automaton(demand, budget, is_search=is_search, spell=shortly)
                for demand, is_search in demands
            )
            for other in others:
                found = intersection(found, other, budget)
        except NoValue:
            raise NoValue("no string fits all that is asked of it", place) from None
        except TooLarge as error:
            raise TooLarge(error.cause, f"`pattern` of {place}") from None
        return found


def _key(schema: dict[str, Any], place: str) -> _Key:
    """Schemas of equal keys have the same strings."""
    return schema.get("pattern"), schema.get("format"), *_lengths(schema, place)


def _lengths(schema: dict[str, Any], place: str) -> tuple[int, int | None]:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    for keyword in ("minLength", "maxLength"):
        if schema.get(keyword, 0) > MAX_REPEAT:
            raise Unsupported(f"`{keyword}` of more than {MAX_REPEAT} is not supported", inside(place, keyword))
    if most is not None and most < least:
        raise NoValue("`maxLength` is less than `minLength`", place)
    return least, most
