"""One schema for what fits two of them, where that can be said in the same keywords; else it is refused."""

from itertools import zip_longest
from typing import Any

from server.structured.refusals import Unsupported
from server.structured.schema.instances import equal
from server.structured.schema.keywords import Schema, enforced, inside, listed

LARGER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
MAX_ALTERNATIVES = 256
"""Of two `anyOf` together."""
SMALLER = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


def merged(one: Any, other: Any, place: str) -> Schema:
    """The schema of values that fit both; `place` is where the other stands. Raises Malformed or Unsupported."""
    a, b = enforced(one, place), enforced(other, place)
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    a, b = _narrowed(a, b, place), _narrowed(b, a, place)
    both = {**a, **b}
    for keyword in a.keys() & b.keys():
        if not equal(a[keyword], b[keyword]) or keyword in ("enum", "const"):
            both[keyword] = _both(keyword, a[keyword], b[keyword], place)
    return False if both.get("type") == [] else both


def _both(keyword: str, a: Any, b: Any, place: str) -> Any:
    """What the keyword must say for both values of it."""
    if keyword in LARGER:
        return max(a, b)
    if keyword in SMALLER:
        return min(a, b)
    match keyword:
        case "type":
            return _types(a, b)
        case "enum":
            return [value for value in a if any(equal(value, other) for other in b)]
        case "required":
            return [*a, *(name for name in b if name not in a)]
        case "allOf":
            return [*a, *b]
        case "properties":
            return {**a, **b, **{name: {"allOf": [a[name], b[name]]} for name in a if name in b}}
        case "prefixItems":
            return [{"allOf": [one, other]} for one, other in zip_longest(a, b, fillvalue=True)]
        case "items":
            return {"allOf": [a, b]}
        case "propertyNames":
            return merged(a, b, inside(place, keyword))
        case "uniqueItems":
            return True
        case "not":
            return {"anyOf": [a, b]}
        case "dependentRequired":
            return {name: [*a.get(name, []), *b.get(name, [])] for name in a | b}
        case "anyOf" if len(a) * len(b) <= MAX_ALTERNATIVES:
            return [{"allOf": [one, other]} for one in a for other in b]
        case "additionalProperties" if a is False or b is False:
            return False
        case "additionalProperties" if a is True or b is True:
            return b if a is True else a
        case "const" if equal(a, b):
            return a
    raise Unsupported(
        f"`{keyword}` twice, in an `allOf` or beside a `$ref`, `anyOf` or `oneOf`, is not supported",
        inside(place, keyword),
    )


def _types(a: str | list[str], b: str | list[str]) -> list[str]:
    mine, theirs = listed(a), listed(b)
    both = [kind for kind in mine if kind in theirs or (kind == "integer" and "number" in theirs)]
    return both + [kind for kind in theirs if kind == "integer" and "number" in mine and kind not in both]


def _narrowed(schema: dict[str, Any], other: dict[str, Any], place: str) -> dict[str, Any]:
    """The schema without what `other` forbids by keywords that look at their own neighbours alone.

    In the merged schema, these would look at all neighbours.
    """
    if "items" in other and len(schema.get("prefixItems", [])) != len(other.get("prefixItems", [])):
        raise Unsupported("`items` in one part of an `allOf`, `prefixItems` in another, is not supported", place)
    extra = other.get("additionalProperties", True)
    patterns, properties = schema.get("patternProperties", {}), schema.get("properties", {})
    if extra is True:
        return schema
    declared = other.get("properties", {})
    has_foreign_patterns = bool(patterns) and patterns != other.get("patternProperties")
    if has_foreign_patterns or (extra is not False and not properties.keys() <= declared.keys()):
        raise Unsupported(
            "`additionalProperties` in one part of an `allOf`, `properties` in another, is not supported", place
        )
    if other.get("patternProperties") and properties:
        raise Unsupported("`patternProperties` beside `properties`, in an `allOf`, is not supported", place)
    if "properties" not in schema:
        return schema
    return {**schema, "properties": {name: sub for name, sub in properties.items() if name in declared}}
