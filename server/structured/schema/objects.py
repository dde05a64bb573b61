"""Writes JSON objects: declared properties in their order, then free names.

That a free name does not come twice is not promised: the last one counts, as it does for readers of JSON.
"""

from typing import Any

from server.structured.refusals import NoValue, Unsupported
from server.structured.schema.keywords import enforced, inside
from server.structured.schema.merging import merged
from server.structured.schema.strings import dumped
from server.structured.schema.writer import Writer

Member = tuple[Any, str]
"""The schema of what stands under a name, and its place."""


def write_object(writer: Writer, start: int, schema: dict[str, Any], depth: int, place: str) -> int:
    properties, required = _properties(schema, place)
    names, further, where = _further(schema, bool(properties), place)
    if names is False:
        names, further, properties = True, False, {}
    listed = _listed(writer, names, inside(place, "propertyNames")) if further is not False else None
    if listed is not None:
        properties = _with_listed(schema, properties, listed, (further, where))
        further = False
    opened = writer.nfa.literal(start, b"{")
    end = writer.nfa.node()
    if properties:
        _check_count(schema, len(properties), len(required), place, is_open=further is not False)
        properties = {
            name: member
            for name, member in properties.items()
            if writer.instances.fit(name, names, inside(place, "propertyNames"))
        }
    if missing := required - properties.keys():
        raise NoValue(f"the name {min(missing)!r:.200} may not be there", inside(place, "required"))
    if properties or further is False:
        may_be_empty = schema.get("minProperties", 0) == 0
        if not properties and not may_be_empty:
            raise NoValue("no property may be there", place)
        _write_declared(
            writer, opened, end, (properties, required, names, further), depth, place, may_be_empty=may_be_empty
        )
    else:
        _write_map(writer, opened, end, (names, further), schema, depth, where)
    return writer.nfa.literal(end, b"}")


def _properties(schema: dict[str, Any], place: str) -> tuple[dict[str, Member], set[str]]:
    """The declared properties, those behind them that are only required, and the names of what is required."""
    properties = {name: (sub, inside(place, "properties", name)) for name, sub in schema.get("properties", {}).items()}
    required = schema.get("required", [])
    extra = schema.get("additionalProperties", True)
    undeclared = [name for name in required if name not in properties]
    if undeclared and extra is False and "patternProperties" not in schema:
        raise NoValue(f"the name {undeclared[0]!r:.200} may not be there", inside(place, "required"))
    return properties | dict.fromkeys(undeclared, (extra, inside(place, "additionalProperties"))), set(required)


def _with_listed(
    schema: dict[str, Any], properties: dict[str, Member], listed: list[str], member: Member
) -> dict[str, Member]:
    """The declared properties, the listed ones in their order, and those that are only required."""
    order = dict.fromkeys([*schema.get("properties", {}), *listed, *properties])
    return {name: properties.get(name, member) for name in order}


def _listed(writer: Writer, names: Any, place: str) -> list[str] | None:
    """The names that there may be, and perhaps some that may not, if they are listed."""
    names = enforced(writer.references.followed(names, place), place)
    if isinstance(names, bool):
        return None
    if "const" in names or "enum" in names:
        values = [names["const"]] if "const" in names else names["enum"]
        return [value for value in values if isinstance(value, str)]
    if "anyOf" not in names:
        return None
    found: list[str] = []
    for index, option in enumerate(names["anyOf"]):
        listed = _listed(writer, option, inside(place, "anyOf", index))
        if listed is None:
            return None
        found += listed
    return found


def _further(schema: dict[str, Any], is_declared: bool, place: str) -> tuple[Any, Any, str]:
    """The schema of free names, that of what stands under them, and its place.

    What nobody describes is not generated beside declared properties, nor where `properties` says that there are none.
    """
    names = schema.get("propertyNames", True)
    extra = schema.get("additionalProperties", not is_declared and "properties" not in schema)
    patterns = schema.get("patternProperties")
    if not patterns:
        return names, extra, inside(place, "additionalProperties")
    if is_declared or len(patterns) > 1 or schema.get("additionalProperties", False) is not False:
        raise Unsupported(
            "`patternProperties` is supported with one pattern and without other properties",
            inside(place, "patternProperties"),
        )
    [(pattern, extra)] = patterns.items()
    where = inside(place, "patternProperties", pattern)
    return merged({"pattern": pattern}, names, where), extra, where


def _check_count(schema: dict[str, Any], declared: int, required: int, place: str, *, is_open: bool) -> None:
    """`is_open`: whether names that are not declared may follow, which nobody counts."""
    least, most = schema.get("minProperties", 0), schema.get("maxProperties")
    if most is not None and most < required:
        raise NoValue("more properties are required than may be there", place)
    for keyword, is_unsure in (
        ("minProperties", least > max(required, 1)),
        ("maxProperties", most is not None and (most < declared or is_open)),
    ):
        if is_unsure:
            raise Unsupported(f"`{keyword}` beside `properties` is not supported", inside(place, keyword))


def _write_declared(
    writer: Writer,
    opened: int,
    end: int,
    members: tuple[dict[str, Member], set[str], Any, Any],
    depth: int,
    place: str,
    *,
    may_be_empty: bool,
) -> None:
    """Two rails lead along the properties: nothing is written yet, or something is and a comma follows.

    `may_be_empty`: whether the object may have no property.
    """
    properties, required, names, further = members
    nfa = writer.nfa
    none: int | None = opened
    some: int | None = None
    for name, (schema, where) in properties.items():
        entry, behind = nfa.node(), nfa.node()
        try:
            key = nfa.literal(entry, dumped(name).encode())
            nfa.link(writer.value(writer.mark(key, b":"), schema, depth - 1, where), behind)
        except NoValue:
            if name in required:
                raise
            continue
        if none is not None:
            nfa.link(none, entry)
        if some is not None:
            nfa.link(writer.mark(some, b","), entry)
            if name not in required:
                nfa.link(some, behind)
        none = None if name in required else none
        some = behind
    exits = [node for node in (none if may_be_empty else None, some) if node is not None]
    if not exits and further is False:
        raise NoValue("no property has a value", place)
    for node in exits:
        nfa.link(node, end)
    if further is not False:
        _write_further(writer, (none, some), end, (names, further, list(properties)), depth, place)


def _write_further(
    writer: Writer,
    rails: tuple[int | None, int | None],
    end: int,
    members: tuple[Any, Any, list[str]],
    depth: int,
    place: str,
) -> None:
    """Free names behind the declared ones, if they can have a value."""
    nfa = writer.nfa
    none, some = rails
    entry = nfa.node()
    try:
        pair = _write_pair(writer, entry, members, depth, inside(place, "additionalProperties"))
    except NoValue:
        return
    nfa.link(pair, end)
    nfa.link(writer.mark(pair, b","), entry)
    if some is not None:
        nfa.link(writer.mark(some, b","), entry)
    if none is not None:
        nfa.link(none, entry)


def _write_map(
    writer: Writer, opened: int, end: int, members: tuple[Any, Any], schema: dict[str, Any], depth: int, place: str
) -> None:
    """Free names alone."""
    nfa = writer.nfa
    least, most = schema.get("minProperties", 0), schema.get("maxProperties")
    if least > 1:
        raise Unsupported("`minProperties` of more than 1 is not supported, since names may come twice", place)
    if most is not None and most < least:
        raise NoValue("`maxProperties` is less than `minProperties`", place)
    names, further = members
    if least == 0:
        nfa.link(opened, end)
    try:
        if most is None:
            entry = nfa.node()
            pair = _write_pair(writer, entry, (names, further, []), depth, place)
            nfa.link(opened, entry)
            nfa.link(writer.mark(pair, b","), entry)
            nfa.link(pair, end)
            return
        with writer.counted(f"`maxProperties` of {place}", max(most, 1)):
            pair = opened
            for number in range(most):
                entry = pair if number == 0 else writer.mark(pair, b",")
                pair = _write_pair(writer, entry, (names, further, []), depth, place)
                nfa.link(pair, end)
    except NoValue:
        if least:
            raise


def _write_pair(writer: Writer, start: int, members: tuple[Any, Any, list[str]], depth: int, place: str) -> int:
    names, schema, taken = members
    key = writer.strings.write_name(start, {} if names is True else names, taken, place)
    return writer.value(writer.mark(key, b":"), schema, depth - 1, place)
