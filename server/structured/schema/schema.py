"""Writes any value of a schema, and compiles a schema to an automaton: the entry to this folder."""

from functools import partial
from typing import Any

from server.structured.automaton import Automaton, determinised, embed
from server.structured.budget import Budget, shallower
from server.structured.nfa import Nfa
from server.structured.refusals import Malformed, NoValue, TooLarge, Unsupported
from server.structured.schema.arrays import write_array
from server.structured.schema.disjoint import told_apart
from server.structured.schema.instances import equal
from server.structured.schema.keywords import OF_TYPE, REWORDED, TYPES, enforced, inside, reworded
from server.structured.schema.merging import merged
from server.structured.schema.numbers import integer, number
from server.structured.schema.objects import write_object
from server.structured.schema.references import MAX_HOPS, References
from server.structured.schema.strings import dumped
from server.structured.schema.writer import Whitespace, Writer

MAX_DEPTH = 6
"""Objects and arrays below each other."""
FREE_DEPTH = 3
"""The same, in values that the schema says nothing of."""
ANY_OBJECT = {"type": "object"}


def automaton(schema: Any, budget: Budget, whitespace: Whitespace = "flexible") -> Automaton:
    """The automaton of JSON texts that fit the schema, nested as deeply as the budget allows.

    Raises Malformed, Unsupported, NoValue or TooLarge.
    """
    return shallower(lambda depth: _compiled(schema, budget, whitespace, depth), MAX_DEPTH, budget)


def _compiled(schema: Any, budget: Budget, whitespace: Whitespace, depth: int) -> Automaton:
    nfa = Nfa(budget)
    start = nfa.node()
    return determinised(nfa, start, write_schema(nfa, start, schema, depth, "#", whitespace))


def write_schema(nfa: Nfa, start: int, schema: Any, depth: int, place: str, whitespace: Whitespace) -> int:
    """Writes a value of the schema behind `start`; `place` is where the schema stands."""
    references = References(schema)
    writer = _Writer(nfa, references, whitespace)
    try:
        return writer.value(start, references.root, depth, place)
    except TooLarge as error:
        [(largest, _)] = writer.savings.most_common(1) or [("", 0)]
        raise TooLarge(error.cause, error.place or largest) from None
    except RecursionError:
        raise Unsupported("schemas within each other so deeply are not supported", place) from None


class _Writer(Writer):
    """Writes values of any type."""

    _hops = 0
    """References that were followed since the last object or array."""

    def value(self, start: int, schema: Any, depth: int, place: str) -> int:
        self.budget.check_time()
        schema = enforced(schema, place)
        if schema is True:
            return self._anything(start, depth, place)
        if schema is False:
            raise NoValue("it is `false`", place)
        if "$ref" in schema:
            return self._referred(start, schema, depth, place)
        if not schema.keys().isdisjoint(REWORDED):
            schema = reworded(schema, place)
        if "allOf" in schema:
            return self._all_of(start, schema, depth, place)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternatives(start, schema, keyword, depth, place)
        if "const" in schema or "enum" in schema:
            return self._listed(start, schema, place)
        kinds = _kinds(schema)
        if not kinds:
            return self._anything(start, depth, place)
        return self.either(
            start, [partial(self._typed, kind=kind, schema=schema, depth=depth, place=place) for kind in kinds]
        )

    def _typed(self, start: int, kind: str, schema: dict[str, Any], depth: int, place: str) -> int:
        match kind:
            case "null":
                return self.nfa.literal(start, b"null")
            case "boolean":
                return self.nfa.words(start, [b"true", b"false"])
            case "integer":
                return embed(self.nfa, start, integer(schema, self.budget, place))
            case "number":
                return embed(self.nfa, start, number(schema, self.budget, place))
            case "string":
                with self.counted(f"`maxLength` of {place}"):
                    return self.strings.write(start, schema, place)
        if depth <= 0:
            raise NoValue(f"it is nested more than {MAX_DEPTH} deep", place)
        hops, self._hops = self._hops, 0
        try:
            return (write_object if kind == "object" else write_array)(self, start, schema, depth, place)
        finally:
            self._hops = hops

    def _anything(self, start: int, depth: int, place: str) -> int:
        """A value of any type."""
        free = min(depth, FREE_DEPTH)
        kinds = [kind for kind in TYPES if kind != "integer" and (free > 0 or kind not in ("object", "array"))]
        return self.either(
            start, [partial(self._typed, kind=kind, schema={}, depth=free, place=place) for kind in kinds]
        )

    def _referred(self, start: int, schema: dict[str, Any], depth: int, place: str) -> int:
        if self._hops >= MAX_HOPS:
            raise Unsupported("the `$ref` leads back to itself", inside(place, "$ref"))
        target = self.references.target(schema["$ref"], place)
        rest = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
        self._hops += 1
        try:
            return self.value(start, merged(target, rest, place) if rest else target, depth, place)
        finally:
            self._hops -= 1

    def _all_of(self, start: int, schema: dict[str, Any], depth: int, place: str) -> int:
        all_of: Any = {keyword: value for keyword, value in schema.items() if keyword != "allOf"}
        for index, part in enumerate(schema["allOf"]):
            where = inside(place, "allOf", index)
            all_of = merged(all_of, self.references.followed(part, where), where)
        return self.value(start, all_of, depth, place)

    def _alternatives(self, start: int, schema: dict[str, Any], keyword: str, depth: int, place: str) -> int:
        rest = {key: value for key, value in schema.items() if key != keyword}
        options = [
            self.references.followed(option, inside(place, keyword, index))
            for index, option in enumerate(schema[keyword])
        ]
        if keyword == "oneOf":
            options = told_apart(options, self.instances, inside(place, keyword))

        written = partial(self._merged, schema=rest, depth=depth)
        return self.either(
            start,
            [
                partial(written, option=option, place=inside(place, keyword, index))
                for index, option in enumerate(options)
            ],
        )

    def _merged(self, start: int, schema: dict[str, Any], option: Any, depth: int, place: str) -> int:
        """A value that fits both."""
        return self.value(start, merged(schema, option, place) if schema else option, depth, place)

    def _listed(self, start: int, schema: dict[str, Any], place: str) -> int:
        """The values of `enum` or `const` that fit all else."""
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if "const" in schema and "enum" in schema:
            values = [value for value in values if any(equal(value, other) for other in schema["enum"])]
        rest = {keyword: value for keyword, value in schema.items() if keyword not in ("const", "enum")}
        fitting = [value for value in values if self.instances.fit(value, rest, place)]
        if not fitting:
            raise NoValue("none of its values fits", place)
        nested = [value for value in fitting if isinstance(value, dict | list)]
        try:
            scalars = [dumped(value).encode() for value in fitting if not isinstance(value, dict | list)]
            return self.either(
                start,
                [
                    *([partial(self.nfa.words, texts=scalars)] if scalars else []),
                    *(partial(self._exactly, value=value) for value in nested),
                ],
            )
        except ValueError:
            raise Malformed("a number is infinite, or none", place) from None

    def _exactly(self, start: int, value: Any) -> int:
        """This value; white space as anywhere."""
        if not isinstance(value, dict | list):
            return self.nfa.literal(start, dumped(value).encode())
        signs = b"{}" if isinstance(value, dict) else b"[]"
        here = self.nfa.literal(start, signs[:1])
        for index, item in enumerate(value):
            here = here if index == 0 else self.mark(here, b",")
            if isinstance(value, dict):
                here = self._exactly(self.mark(self.nfa.literal(here, dumped(item).encode()), b":"), value[item])
            else:
                here = self._exactly(here, item)
        return self.nfa.literal(here, signs[1:])


def _kinds(schema: dict[str, Any]) -> list[str]:
    """The types that are written: those named, or those of which a keyword says something. None: all."""
    named = schema.get("type")
    if named is None:
        found = [kind for kind in TYPES if schema.keys() & OF_TYPE[kind]]
    else:
        found = [named] if isinstance(named, str) else named
    if named is None and "multipleOf" in schema:  # it is enforced for integers alone
        return [kind for kind in found if kind != "number"]
    return [kind for kind in found if kind != "integer" or "number" not in found]
