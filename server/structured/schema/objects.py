"""Writes JSON objects: declared properties in their order, then free names.

That a free name does not come twice is not promised: the last one counts, as it does for readers of JSON.
"""

from typing import Any

from server.structured.refusals import NoValue, Unsupported
from server.structured.schema.keywords import inside
from server.structured.schema.merging import merged
from server.structured.schema.strings import dumped
from server.structured.schema.writer import Writer


def write_object(writer: Writer, start: int, schema: dict[str, Any], depth: int, place: str) -> int:
    properties, required = _properties(schema, place)
    names, further, where = _further(schema, bool(properties), place)
    if names is False:
        names, further, properties = True, False, {}
    opened = writer.nfa.literal(start, b"{")
    end = writer.nfa.node()
    if properties:
        _check_count(schema, len(properties), len(required), place, is_open=further is not False)
        properties = {
            name: sub
            for name, sub in properties.items()
            if writer.instances.fit(name, names, inside(place, "propertyNames"))
        }
    if missing := required - properties.keys():
        raise NoValue(f"the name {min(missing)!r:.200} may not be there", inside(place, "required"))
    if properties or further is False:
        is_empty_refused = schema.get("minProperties", 0) > 0 and not properties
        if is_empty_refused:
            raise NoValue("no property may be there", place)
        _write_declared(writer, opened, end, (properties, required, names, further), depth, place)
    else:
        _write_map(writer, opened, end, (names, further), schema, depth, where)
    return writer.nfa.literal(end, b"}")


def _properties(schema: dict[str, Any], place: str) -> tuple[dict[str, Any], set[str]]:
    """The declared properties, those behind them that are only required, and the names of what is required."""
    properties = dict(schema.get("properties", {}))
    required = schema.get("required", [])
    extra = schema.get("additionalProperties", True)
    undeclared = [name for name in required if name not in properties]
    if undeclared and extra is False and "patternProperties" not in schema:
        raise NoValue(f"the name {undeclared[0]!r:.200} may not be there", inside(place, "required"))
    return properties | dict.fromkeys(undeclared, extra), set(required)


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
        ("minProperties", least > required),
        ("maxProperties", most is not None and (most < declared or is_open)),
    ):
        if is_unsure:
            raise Unsupported(f"`{keyword}` beside `properties` is not supported", inside(place, keyword))


def _write_declared(
    writer: Writer, opened: int, end: int, members: tuple[dict[str, Any], set[str], Any, Any], depth: int, place: str
) -> None:
    """Two rails lead along the properties: nothing is written yet, or something is and a comma follows."""
    properties, required, names, further = members
    nfa = writer.nfa
    none: int | None = opened
    some: int | None = None
    for name, schema in properties.items():
        entry, behind = nfa.node(), nfa.node()
        try:
            key = nfa.literal(entry, dumped(name).encode())
            nfa.link(writer.value(writer.mark(key, b":"), schema, depth - 1, inside(place, "properties", name)), behind)
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
    exits = [node for node in (none, some) if node is not None]
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
