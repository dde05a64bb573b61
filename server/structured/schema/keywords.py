"""Which keywords of JSON Schema are enforced, which are refused, and what their values may be. Others say nothing.

Words of older drafts, and some of today, are said in others' words.
"""

from collections.abc import Callable, Iterable, Iterator
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
            "dependentRequired",
        }
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
"""The keywords that say something of values of one type."""
TYPES = tuple(OF_TYPE)
OF_ANY = frozenset({"$ref", "anyOf", "oneOf", "allOf", "not", "enum", "const", "type"})
REWORDED = frozenset({"not", "dependentRequired"})
ENFORCED = OF_ANY.union(*OF_TYPE.values())
REFUSED = frozenset(
    {
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contains",
        "minContains",
        "maxContains",
        "$dynamicRef",
        "$recursiveRef",
    }
)

DROPPED = COUNTS | BOUNDS | REFUSED | REWORDED | {"pattern", "format", "multipleOf", "uniqueItems", "propertyNames"}
"""Keywords that `unbounded` leaves out."""

OF_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
"""Keywords under which there are schemas by names, which may be those of keywords."""
OF_VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keywords under which there are no schemas."""


def within(node: object) -> Iterator[object]:
    """The schemas and lists right within a schema or a list, those under keywords that say nothing here too."""
    if isinstance(node, list):
        yield from node
    elif isinstance(node, dict):
        for keyword, value in node.items():
            if keyword in OF_NAMES and isinstance(value, dict):
                yield from value.values()
            elif keyword not in OF_VALUES:
                yield value


def unbounded(schema: Any) -> Any:
    """The schema without what bounds values of a type, and without keywords that are not supported.

    What fits the schema fits this one too, where no `oneOf` has it otherwise.
    """
    if isinstance(schema, list):
        return [unbounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    left: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in OF_NAMES and keyword not in DROPPED and isinstance(value, dict):
            left[keyword] = {name: unbounded(one) for name, one in value.items()}
        elif keyword in OF_VALUES:
            left[keyword] = value
        elif keyword not in DROPPED:
            left[keyword] = unbounded(value)
    return left


def inside(place: str, *keys: str | int) -> str:
    """The JSON pointer to what stands under these keys."""
    return "/".join([place, *(str(key).replace("~", "~0").replace("/", "~1") for key in keys)])


def enforced(schema: object, place: str) -> Schema:
    """The keywords of the schema that are enforced; True if there are none. Raises Malformed or Unsupported."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise Malformed("a schema is an object, `true` or `false`", place)
    schema = _of_today(schema)
    for keyword in schema:
        if keyword in REFUSED:
            raise Unsupported(f"the keyword `{keyword}` is not supported; leave it out", inside(place, keyword))
    if _begins_resource(schema) and _holds_references(schema):
        raise Unsupported("the keyword `$id` is not supported around a `$ref`; leave it out", inside(place, "$id"))
    return {
        keyword: _checked(keyword, value, inside(place, keyword))
        for keyword, value in schema.items()
        if keyword in ENFORCED
    } or True


def listed(types: str | list[str]) -> list[str]:
    """The types of `type`."""
    return [types] if isinstance(types, str) else types


def reworded(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """The same schema without the keywords of `REWORDED`. Raises Unsupported."""
    said = {keyword: value for keyword, value in schema.items() if keyword not in REWORDED}
    parts = list(said.get("allOf", []))
    if "not" in schema:
        parts.append(negated(schema["not"], inside(place, "not")))
    for name, names in schema.get("dependentRequired", {}).items():
        is_there = {"required": [name, *names]}
        parts.append({"anyOf": [without([name]), is_there]})
    return {**said, "allOf": parts} if parts else said


def without(names: Iterable[str]) -> dict[str, Any]:
    """Objects in which one of the names is missing."""
    options = [{"type": "object", "properties": {name: False}} for name in names]
    return options[0] if len(options) == 1 else {"anyOf": options}


def negated(schema: Any, place: str) -> Schema:
    """What does not fit: of a schema of `type`, `required`, or `anyOf` of such. Raises Unsupported."""
    schema = enforced(schema, place)
    if isinstance(schema, bool):
        return not schema
    options = schema.get("anyOf")
    types = listed(schema.get("type", []))
    others = [kind for kind in TYPES if kind not in types and not (kind == "integer" and "number" in types)]
    is_told = "integer" not in types or "number" in types
    if schema.keys() == {"anyOf"}:
        return {"allOf": [negated(one, inside(place, "anyOf", index)) for index, one in enumerate(options or [])]}
    if schema.keys() == {"type"} and is_told:
        return {"type": others} if others else False
    if schema.keys() - {"type"} == {"required"} and types in ([], ["object"]):
        missing = without(schema["required"]) if schema["required"] else False
        return {"anyOf": [missing, {"type": others}]} if types else missing
    raise Unsupported("`not` is supported of `type` or `required` alone, or of an `anyOf` of these", place)


def _of_today(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema in the words of draft 2020-12. Older words of another meaning are no valid ones today."""
    if schema.keys().isdisjoint(_OLDER):
        return schema
    said = dict(schema)
    further = said.pop("additionalItems", True)
    if isinstance(said.get("items"), list) and "prefixItems" not in said:
        prefix, said["items"] = said["items"], further
        said |= {"prefixItems": prefix} if prefix else {}
    for keyword, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(said.get(keyword), bool):
            is_exclusive = said.pop(keyword)
            if is_exclusive and bound in said:
                said[keyword] = said.pop(bound)
    dependencies = said.get("dependencies")
    if isinstance(dependencies, dict) and all(isinstance(names, list) for names in dependencies.values()):
        said["dependentRequired"] = {**said.get("dependentRequired", {}), **said.pop("dependencies")}
    return said


_OLDER = frozenset({"items", "additionalItems", "exclusiveMinimum", "exclusiveMaximum", "dependencies"})


def _begins_resource(schema: dict[str, Any]) -> bool:
    """Whether references inside are not relative to the whole schema. An `$id` of drafts 6 and 7 may be an anchor."""
    return "$id" in schema and not str(schema["$id"]).startswith("#")


def _holds_references(node: object) -> bool:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict) and "$ref" in node:
            return True
        waiting += within(node)
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


def _is_dependent(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_names, value.values()))


_SCHEMA = (_is((dict, bool)), "a schema")
_SCHEMAS = (_is_full_list, "a list of at least one schema")
_BY_NAME = (_is(dict), "an object of schemas")
_TEXT = (_is(str), "a text")
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, (_is_count, "a whole number, 0 or more")),
    **dict.fromkeys(BOUNDS, (_is_number, "a number")),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    "uniqueItems": (_is(bool), "`true` or `false`"),
    "dependentRequired": (_is_dependent, "an object of lists of names"),
    "type": (_is_types, "one of " + ", ".join(f"`{name}`" for name in TYPES) + ", or a list of these"),
    "enum": (_is(list), "a list of values"),
    "const": (_is(object), "a value"),
    "required": (_is_names, "a list of names"),
    **dict.fromkeys(("properties", "patternProperties"), _BY_NAME),
    **dict.fromkeys(("additionalProperties", "propertyNames", "items", "not"), _SCHEMA),
    **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf"), _SCHEMAS),
}
"""Of each keyword, what its value must be, and in words."""
