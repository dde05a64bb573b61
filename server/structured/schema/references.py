"""Follows `$ref` within one schema. A reference that reaches itself costs nesting wherever it is followed."""

import re
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from server.structured.refusals import Unsupported
from server.structured.schema.keywords import enforced, inside, within

MAX_HOPS = 64
"""References that follow each other without an object or array between."""


class References:
    """The references of a schema."""

    def __init__(self, schema: Any) -> None:
        self.root = schema
        """The schema, without its own address."""
        self._address = ""
        if isinstance(schema, dict):
            address = schema.get("$id", schema.get("id", ""))
            self._address = urldefrag(address).url if isinstance(address, str) else ""
            self.root = {keyword: value for keyword, value in schema.items() if keyword != "$id"}

    def target(self, reference: str, place: str) -> Any:
        """What `reference` points to. Raises Unsupported if that is nothing here."""
        place = inside(place, "$ref")
        if not self._is_here(reference):
            raise Unsupported(f"a `$ref` may lead to a place of this schema (`#/…`), not to {reference!r:.200}", place)
        fragment = unquote(urldefrag(reference).fragment)
        if fragment in self._anchors:
            return self._anchors[fragment]
        node: Any = self.root
        name, *parts = fragment.split("/")
        if name:
            raise Unsupported(f"the `$ref` {reference!r:.200} leads nowhere", place)
        for part in parts:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                node = node[_index(key)] if isinstance(node, list) else node[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unsupported(f"the `$ref` {reference!r:.200} leads nowhere", place) from None
        return node

    def _is_here(self, reference: str) -> bool:
        """Whether it leads to this schema."""
        try:
            document = urldefrag(reference).url
            return document in ("", self._address) or urljoin(self._address, document) == self._address
        except ValueError:
            return False

    @cached_property
    def _anchors(self) -> dict[str, Any]:
        """Schemas by their names, `$anchor` or the `$id` of drafts 6 and 7."""
        found: dict[str, Any] = {}
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                address = node.get("$id", "#")
                if not isinstance(address, str) or not address.startswith("#"):
                    continue  # its names are its own
                for name in (node.get("$anchor"), address[1:]):
                    if isinstance(name, str) and name and "/" not in name:
                        found.setdefault(name, node)
            waiting += within(node)
        return found

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
            waiting += within(node)
        return False


def _index(key: str) -> int:
    """A place in a list, as RFC 6901 writes it, and not in all the ways that Python reads. Raises ValueError."""
    if not re.fullmatch("0|[1-9][0-9]*", key):
        raise ValueError(key)
    return int(key)
