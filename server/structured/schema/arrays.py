"""Writes JSON arrays: items by place, then further ones."""

from typing import Any

from server.structured.refusals import NoValue, Unsupported
from server.structured.schema.instances import equal
from server.structured.schema.keywords import enforced, inside, listed
from server.structured.schema.writer import Writer

MAX_ITEMS = 1024
MAX_IN_ANY_ORDER = 6
"""Values of which each may come once, in any order. More come in the order in which they are listed."""


def write_array(writer: Writer, start: int, schema: dict[str, Any], depth: int, place: str) -> int:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    prefix = schema.get("prefixItems", [])
    further = schema.get("items", not prefix or least > len(prefix))  # what nobody describes is not generated
    for keyword in ("minItems", "maxItems"):
        if schema.get(keyword, 0) > MAX_ITEMS:
            raise Unsupported(f"`{keyword}` of more than {MAX_ITEMS:,} is not supported", inside(place, keyword))
    if most is not None and most < least:
        raise NoValue("`maxItems` is less than `minItems`", place)
    opened = writer.nfa.literal(start, b"[")
    end = writer.nfa.node()
    if schema.get("uniqueItems") and (most is None or most > 1):
        values = _values(writer, further, inside(place, "items")) if not prefix else None
        _write_distinct(writer, opened, end, values, (least, most), place)
        return writer.nfa.literal(end, b"]")
    with writer.counted(f"`{'maxItems' if most else 'minItems'}` of {place}", max(most or least, 1)):
        _write_items(writer, opened, end, (prefix, further), (least, most), depth, place)
    return writer.nfa.literal(end, b"]")


def _write_items(
    writer: Writer,
    opened: int,
    end: int,
    items: tuple[list[Any], Any],
    bounds: tuple[int, int | None],
    depth: int,
    place: str,
) -> None:
    """Writes from behind the bracket to `end`: one item behind the other, then a loop if they have no bound.

    An item that has no value ends the array, if it may end there.
    """
    prefix, further = items
    least, most = bounds
    here, count = opened, 0
    while most is None or count < most:
        if count >= least:
            writer.nfa.link(here, end)
        is_listed = count < len(prefix)
        where = inside(place, "prefixItems", count) if is_listed else inside(place, "items")
        entry = writer.nfa.node()
        writer.nfa.link(here if count == 0 else writer.mark(here, b","), entry)
        try:
            here = writer.value(entry, prefix[count] if is_listed else further, depth - 1, where)
        except NoValue:
            if count < least:
                raise
            return
        count += 1
        if most is None and count >= max(least, len(prefix) + 1):
            writer.nfa.link(here, end)
            writer.nfa.link(writer.mark(here, b","), entry)
            return
    writer.nfa.link(here, end)


def _values(writer: Writer, schema: Any, place: str) -> list[Any] | None:
    """All values that fit the schema, each once, if it lists them."""
    schema = enforced(writer.references.followed(schema, place), place)
    if isinstance(schema, bool):
        return None
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is None and (types := set(listed(schema.get("type", "string")))) <= {"boolean", "null"}:
        values = [True, False] * ("boolean" in types) + [None] * ("null" in types)
    if values is None:
        return None
    fitting = [value for value in values if writer.instances.fit(value, schema, place)]
    return [value for index, value in enumerate(fitting) if not any(equal(value, one) for one in fitting[:index])]


def _write_distinct(
    writer: Writer, opened: int, end: int, values: list[Any] | None, bounds: tuple[int, int | None], place: str
) -> None:
    """Some of the values, none of them twice. Raises Unsupported if they are not known, or only one order is left."""
    least, most = bounds
    if values is None:
        raise Unsupported(
            "`uniqueItems` is supported for items of an `enum`, or one at most (`maxItems`)",
            inside(place, "uniqueItems"),
        )
    if least > len(values):
        raise NoValue("there are fewer values than `minItems`", place)
    is_ordered = len(values) > MAX_IN_ANY_ORDER
    if is_ordered and least == len(values):
        raise Unsupported(
            f"`uniqueItems` of more than {MAX_IN_ANY_ORDER} values, all of which are needed, is not supported", place
        )
    last = len(values) if most is None else min(most, len(values))
    nfa = writer.nfa
    entries: dict[tuple[tuple[int, ...], int], int] = {}
    """Where one of some values must come, which are numbers, behind so many items."""
    waiting: list[tuple[tuple[int, ...], int]] = []

    def entry(left: tuple[int, ...], count: int) -> int:
        if (left, count) not in entries:
            entries[left, count] = nfa.node()
            waiting.append((left, count))
        return entries[left, count]

    if not least:
        nfa.link(opened, end)
    if last:
        nfa.link(opened, entry(tuple(range(len(values))), 0))
    while waiting:
        left, count = waiting.pop()
        for index, number in enumerate(left[:1] if is_ordered else left):
            rest = left[:index] + left[index + 1 :]
            where = inside(place, "items")
            behind = writer.value(entries[left, count], {"const": values[number]}, 1, where)
            if count + 1 >= least:
                nfa.link(behind, end)
            if count + 1 < last and rest:
                nfa.link(writer.mark(behind, b","), entry(rest, count + 1))
            if is_ordered and rest:
                nfa.link(entries[left, count], entry(rest, count))
