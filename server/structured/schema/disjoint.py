"""Whether no value fits two schemas, where that can be proved; `oneOf` is only then what `anyOf` is.

What two schemas share is left out where it can be said: `null`, and objects with the names that tell them apart.
"""

from itertools import combinations
from typing import Any

from server.structured.refusals import Unsupported
from server.structured.schema.instances import Instances, equal, type_of
from server.structured.schema.keywords import TYPES, Schema, enforced, inside, listed, without


def told_apart(options: list[Any], instances: Instances, place: str) -> list[Any]:
    """The options without values that fit two of them, and perhaps without some that fit one.

    `place` is that of their `oneOf`. Raises Unsupported if a value may fit two all the same.
    """
    said = [enforced(option, inside(place, number)) for number, option in enumerate(options)]
    said = _without_null(said, instances, place)
    apart = list(said)
    for (one, a), (other, b) in combinations(enumerate(said), 2):
        instances.budget.check_time()
        if _Proof(instances, place).holds(a, b):
            continue
        mine, theirs = _names_of(a), _names_of(b)
        if not mine - theirs or not theirs - mine:
            raise Unsupported(
                f"branches {one} and {other} of this `oneOf` may fit one value; use `anyOf`, or tell them apart by "
                "`type`, or by a `const` of a required property",
                place,
            )
        apart[one] = {"allOf": [apart[one], without(sorted(theirs - mine))]}
        apart[other] = {"allOf": [apart[other], without(sorted(mine - theirs))]}
    return apart


def _without_null(options: list[Schema], instances: Instances, place: str) -> list[Schema]:
    """Without `null` if it fits two of the options, and all that it fits name it among their types."""
    try:
        allowing = [option for option in options if instances.fit(None, option, place)]
    except Unsupported:
        return options
    if len(allowing) < 2 or any(isinstance(option, bool) or "type" not in option for option in allowing):
        return options
    return [_not_null(option) if option in allowing else option for option in options]


def _not_null(option: Schema) -> Schema:
    assert isinstance(option, dict)
    types = [kind for kind in listed(option["type"]) if kind != "null"]
    return {**option, "type": types} if types else False


def _names_of(option: Schema) -> set[str]:
    """The names that the objects of the option must have."""
    return set() if isinstance(option, bool) else set(option.get("required", []))


class _Proof:
    def __init__(self, instances: Instances, place: str) -> None:
        self._instances = instances
        self._place = place

    def holds(self, a: Any, b: Any) -> bool:
        if a is False or b is False:
            return True
        if a is True or b is True:
            return False
        return (
            not _types(a) & _types(b)
            or self._values_differ(a, b)
            or _bounds_differ(a, b)
            or (_types(a) & _types(b) == {"object"} and self._objects_differ(a, b))
        )

    def _values_differ(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        mine, theirs = _values(a), _values(b)
        if mine is not None and theirs is not None:
            return not any(equal(value, other) for value in mine for other in theirs)
        values, schema = (mine, b) if mine is not None else (theirs, a)
        if values is None:
            return False
        try:
            return not any(self._instances.fit(value, schema, self._place) for value in values)
        except Unsupported:
            return False

    def _objects_differ(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        return self._members_differ(a, b) or _is_closed(a, b) or _is_closed(b, a)

    def _members_differ(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        """Whether a property that both require is told apart."""
        mine, theirs = a.get("properties", {}), b.get("properties", {})
        shared = set(a.get("required", [])) & set(b.get("required", [])) & mine.keys() & theirs.keys()
        return any(
            self.holds(enforced(mine[name], self._place), enforced(theirs[name], self._place)) for name in shared
        )


def _is_closed(closed: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one requires a property that the other does not allow."""
    if closed.get("additionalProperties") is not False or "patternProperties" in closed:
        return False
    return any(name not in closed.get("properties", {}) for name in other.get("required", []))


def _bounds_differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether both are of numbers, and one begins where the other has ended."""
    if not (_types(a) & _types(b) <= {"number", "integer"}):
        return False
    return any(
        low in one and high in other and (one[low] > other[high] or (one[low] == other[high] and is_exclusive))
        for one, other in ((a, b), (b, a))
        for low, high, is_exclusive in (
            ("minimum", "maximum", False),
            ("minimum", "exclusiveMaximum", True),
            ("exclusiveMinimum", "maximum", True),
            ("exclusiveMinimum", "exclusiveMaximum", True),
        )
    )


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _types(schema: dict[str, Any]) -> set[str]:
    """The types that a value of the schema may have; an integer is a number, too."""
    named = schema.get("type")
    if named is None:
        values = _values(schema)
        found = set(TYPES) if values is None else {type_of(value) for value in values}
    else:
        found = {named} if isinstance(named, str) else set(named)
    return found | {"number"} if "integer" in found else found
