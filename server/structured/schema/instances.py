"""Whether a value fits a schema: for the values of `enum` and `const`, and for the names of properties.

Enforces the same keywords as the automaton does. A pattern is read by its automaton, not by a regex library.
"""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

from server.structured.automaton import Automaton
from server.structured.budget import Budget
from server.structured.refusals import NoValue, placed
from server.structured.regex import expressions, regex
from server.structured.schema.formats import FORMATS
from server.structured.schema.keywords import enforced, inside, reworded
from server.structured.schema.references import MAX_HOPS, References


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, and not `true`."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def type_of(value: Any) -> str:
    """The JSON Schema type of a value; `integer` for 1.0 too."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
    return "integer" if value == value // 1 else "number"


class Instances:
    """Judges values under schemas whose references are `references`."""

    def __init__(self, references: References, budget: Budget) -> None:
        self._references = references
        self.budget = budget
        self._automata: dict[tuple[str, bool], Automaton | None] = {}

    def fit(self, value: Any, schema: Any, place: str, hops: int = 0) -> bool:
        """Whether `value` fits. Raises Malformed or Unsupported for a schema that cannot be enforced."""
        self.budget.check_time()
        schema = enforced(schema, place)
        if isinstance(schema, bool):
            return schema
        schema = reworded(schema, place)
        if "$ref" in schema:
            if hops > MAX_HOPS:
                return False
            target = self._references.target(schema["$ref"], place)
            if not self.fit(value, target, place, hops + 1):
                return False
        return self._fits_any(value, schema, place, hops) and self._fits_its_type(value, schema, place)

    def _fits_any(self, value: Any, schema: dict[str, Any], place: str, hops: int) -> bool:
        """The keywords that say something of every value."""
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        kind = type_of(value)
        if types and kind not in types and not (kind == "integer" and "number" in types):
            return False
        if "const" in schema and not equal(value, schema["const"]):
            return False
        if "enum" in schema and not any(equal(value, one) for one in schema["enum"]):
            return False
        counts = {
            keyword: sum(
                self.fit(value, one, inside(place, keyword, number), hops)
                for number, one in enumerate(schema.get(keyword, []))
            )
            for keyword in ("allOf", "anyOf", "oneOf")
        }
        return (
            counts["allOf"] == len(schema.get("allOf", []))
            and ("anyOf" not in schema or counts["anyOf"] > 0)
            and ("oneOf" not in schema or counts["oneOf"] == 1)
        )

    def _fits_its_type(self, value: Any, schema: dict[str, Any], place: str) -> bool:
        """The keywords that say something of values of its type."""
        match value:
            case bool() | None:
                return True
            case str():
                return _is_within(len(value), schema, "Length") and self._has_form(value, schema, place)
            case list():
                items = self._items(value, schema, place)
                is_distinct = not schema.get("uniqueItems") or self._are_distinct(value)
                return _is_within(len(value), schema, "Items") and is_distinct and all(items)
            case dict():
                return (
                    _is_within(len(value), schema, "Properties")
                    and value.keys() >= set(schema.get("required", []))
                    and all(self._members(value, schema, place))
                )
        return _is_between(Decimal(str(value)), schema)

    def _has_form(self, value: str, schema: dict[str, Any], place: str) -> bool:
        kind = schema.get("format")
        return ("pattern" not in schema or self.is_found(schema["pattern"], value, inside(place, "pattern"))) and (
            kind not in FORMATS or self._matches(FORMATS[kind], value, is_search=False)
        )

    def _items(self, value: list[Any], schema: dict[str, Any], place: str) -> Iterator[bool]:
        prefix = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            if number < len(prefix):
                yield self.fit(item, prefix[number], inside(place, "prefixItems", number))
            else:
                yield self.fit(item, schema.get("items", True), inside(place, "items"))

    def _are_distinct(self, values: list[Any]) -> bool:
        for index, value in enumerate(values):
            self.budget.check_time()
            if any(equal(value, other) for other in values[:index]):
                return False
        return True

    def _members(self, value: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[bool]:
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, member in value.items():
            yield self.fit(name, schema.get("propertyNames", True), inside(place, "propertyNames"))
            is_declared = name in properties
            if is_declared:
                yield self.fit(member, properties[name], inside(place, "properties", name))
            for pattern, sub in patterns.items():
                where = inside(place, "patternProperties", pattern)
                if self.is_found(pattern, name, where):
                    is_declared = True
                    yield self.fit(member, sub, where)
            if not is_declared:
                where = inside(place, "additionalProperties")
                yield self.fit(member, schema.get("additionalProperties", True), where)

    def is_found(self, pattern: str, value: str, place: str) -> bool:
        """Whether the pattern matches somewhere in the text; `place` is where the pattern stands."""
        with placed(place):
            return self._matches(pattern, value, is_search=True)

    def _matches(self, pattern: str, value: str, *, is_search: bool) -> bool:
        key = pattern, is_search
        if key not in self._automata:
            try:
                self._automata[key] = expressions.automaton(regex.parsed(pattern), self.budget, is_search=is_search)
            except NoValue:
                self._automata[key] = None
        found = self._automata[key]
        return found is not None and found.matches(value)


def _is_within(count: int, schema: dict[str, Any], what: str) -> bool:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", count)
    return bool(least <= count <= most)


def _is_between(value: Decimal, schema: dict[str, Any]) -> bool:
    limits = {keyword: Decimal(str(schema[keyword])) for keyword in schema if keyword in _COMPARED}
    # Decimals have no remainder of numbers that are far apart.
    is_multiple = "multipleOf" not in schema or Fraction(value) % Fraction(str(schema["multipleOf"])) == 0
    return bool(is_multiple) and all(bool(_COMPARED[keyword](value, limit)) for keyword, limit in limits.items())


_COMPARED = {
    "minimum": Decimal.__ge__,
    "maximum": Decimal.__le__,
    "exclusiveMinimum": Decimal.__gt__,
    "exclusiveMaximum": Decimal.__lt__,
}
