"""Writes JSON arrays: items by place, then further ones."""

from typing import Any

from server.structured.refusals import NoValue, Unsupported
from server.structured.schema.keywords import inside
from server.structured.schema.writer import Writer

MAX_ITEMS = 1024


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
