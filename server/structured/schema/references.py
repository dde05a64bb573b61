"""Follows `$ref` within one schema. A reference that reaches itself costs nesting wherever it is followed."""

from functools import cached_property
from typing import Any

from server.structured.refusals import Unsupported
from server.structured.schema.keywords import enforced, inside

MAX_HOPS = 64
"""References that follow each other without an object or array between."""
VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keywords under which there are no schemas."""


class References:
    """The references of a schema, `root`."""

    def __init__(self, root: object) -> None:
        self._root = root

    def target(self, reference: str, place: str) -> Any:
        """What `reference` points to. Raises Unsupported if that is nothing here."""
        place = inside(place, "$ref")
        if reference != "#" and not reference.startswith("#/"):
            raise Unsupported(f"a `$ref` may lead to a place of this schema (`#/…`), not to {reference!r:.200}", place)
        node: Any = self._root
        for part in reference.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(key)] if isinstance(node, list) else node[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unsupported(f"the `$ref` {reference!r:.200} leads nowhere", place) from None
        return node

    def followed(self, schema: Any, place: str) -> Any:
        """The schema behind references that stand alone and do not reach themselves."""
        seen = set()
        while isinstance(schema, dict) and "$ref" in schema:
            rest = enforced(schema, place)
            assert isinstance(rest, dict)
            reference = rest["$ref"]
            if len(rest) > 1 or reference in seen or self._reaches_itself(reference, place):
                break
            seen.add(reference)
            schema = self.target(reference, place)
        return schema

    def _reaches_itself(self, reference: str, place: str) -> bool:
        if reference not in self._reaching:
            self._reaching[reference] = self._search(reference, place)
        return self._reaching[reference]

    @cached_property
    def _reaching(self) -> dict[str, bool]:
        return {}

    def _search(self, reference: str, place: str) -> bool:
        seen: set[str] = set()
        waiting = [self.target(reference, place)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                further = node.get("$ref")
                if further == reference:
                    return True
                if isinstance(further, str) and further not in seen:
                    seen.add(further)
                    waiting.append(self.target(further, place))
                waiting += [value for key, value in node.items() if key not in VALUES]
            elif isinstance(node, list):
                waiting += node
        return False
