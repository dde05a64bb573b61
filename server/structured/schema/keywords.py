"""Which keywords of JSON Schema are enforced, which are refused, and what their values may be. Others say nothing."""

from collections.abc import Callable
from math import isfinite
from typing import Any

from server.structured.refusals import Malformed, Unsupported

Schema = dict[str, Any] | bool
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
OF_TYPE = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": BOUNDS | {"multipleOf"},
    "number": BOUNDS,
    "object": frozenset(
        {
            "properties",
            "required",
            "additionalProperties",
            "patternProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
        }
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
"""The keywords that say something of values of one type."""
TYPES = tuple(OF_TYPE)
OF_ANY = frozenset({"$ref", "anyOf", "oneOf", "allOf", "enum", "const", "type"})
ENFORCED = OF_ANY.union(*OF_TYPE.values())
REFUSED = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "additionalItems",
        "$dynamicRef",
        "$recursiveRef",
        "$anchor",
    }
)


def inside(place: str, *keys: str | int) -> str:
    """The JSON pointer to what stands under these keys."""
    return "/".join([place, *(str(key).replace("~", "~0").replace("/", "~1") for key in keys)])


def enforced(schema: object, place: str) -> Schema:
    """The keywords of the schema that are enforced; True if there are none. Raises Malformed or Unsupported."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise Malformed("a schema is an object, `true` or `false`", place)
    for keyword, value in schema.items():
        if keyword in REFUSED and not (keyword == "uniqueItems" and value is False):
            raise Unsupported(f"the keyword `{keyword}` is not supported; leave it out", inside(place, keyword))
    if place != "#" and "$id" in schema and _holds_references(schema):
        raise Unsupported("the keyword `$id` is not supported around a `$ref`; leave it out", inside(place, "$id"))
    return {
        keyword: _checked(keyword, value, inside(place, keyword))
        for keyword, value in schema.items()
        if keyword in ENFORCED
    } or True


def _holds_references(node: object) -> bool:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "$ref" in node:
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False


def _checked(keyword: str, value: Any, place: str) -> Any:
    is_valid, what = _FORMS[keyword]
    if not is_valid(value):
        raise Malformed(f"`{keyword}` is {what}", place)
    return int(value) if keyword in COUNTS else value


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and isfinite(value))


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_type(value: object) -> bool:
    return isinstance(value, str) and value in TYPES


def _is(kind: type | tuple[type, ...]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _is_full_list(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0


def _is_types(value: object) -> bool:
    return _is_type(value) or (isinstance(value, list) and bool(value) and all(map(_is_type, value)))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_SCHEMA = (_is((dict, bool)), "a schema")
_SCHEMAS = (_is_full_list, "a list of at least one schema")
_BY_NAME = (_is(dict), "an object of schemas")
_TEXT = (_is(str), "a text")
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, (_is_count, "a whole number, 0 or more")),
    **dict.fromkeys(BOUNDS, (_is_number, "a number")),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    "type": (_is_types, "one of " + ", ".join(f"`{name}`" for name in TYPES) + ", or a list of these"),
    "enum": (_is(list), "a list of values"),
    "const": (_is(object), "a value"),
    "required": (_is_names, "a list of names"),
    **dict.fromkeys(("properties", "patternProperties"), _BY_NAME),
    **dict.fromkeys(("additionalProperties", "propertyNames", "items"), _SCHEMA),
    **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf"), _SCHEMAS),
}
"""Of each keyword, what its value must be, and in words."""
