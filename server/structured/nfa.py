"""A nondeterministic automaton over bytes, written from left to right. Knows bytes and code points, but no syntax.

Everything that writes takes the node where it begins and returns the node where it ends.
"""

from collections.abc import Iterable

from server.structured.budget import Budget
from server.structured.regex.code_points import Range, Ranges, spellings


class Nfa:
    """Nodes with edges under ranges of bytes, and links that cost none."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.links: list[list[int]] = []
        """For each node, the nodes that are reached without a byte."""
        self.edges: list[list[tuple[int, int, int]]] = []
        """For each node, (first byte, last byte, the node that they lead to)."""

    def node(self) -> int:
        """A new node. Raises TooLarge."""
        self.links.append([])
        self.edges.append([])
        count = len(self.links)
        self.budget.check_nodes(count)
        if count % 1024 == 0:
            self.budget.check_time()
        return count - 1

    def link(self, start: int, end: int) -> None:
        self.links[start].append(end)

    def edge(self, start: int, low: int, high: int, end: int) -> None:
        self.edges[start].append((low, high, end))

    def literal(self, start: int, text: bytes) -> int:
        """Exactly these bytes."""
        for byte in text:
            end = self.node()
            self.edge(start, byte, byte, end)
            start = end
        return start

    def words(self, start: int, texts: Iterable[bytes]) -> int:
        """One of these texts. Beginnings that are equal are written once."""
        end = self.node()
        known: dict[tuple[int, int], int] = {}
        for text in sorted(set(texts)):
            node = start
            for byte in text:
                if (node, byte) not in known:
                    known[node, byte] = self.literal(node, bytes([byte]))
                node = known[node, byte]
            self.link(node, end)
        return end

    def character(self, start: int, ranges: Ranges) -> int:
        """One code point of these ranges, in UTF-8. Ends of spellings that are equal are written once."""
        end = self.node()
        known: dict[tuple[Range, ...], int] = {(): end}

        def node_of(tail: tuple[Range, ...]) -> int:
            if tail not in known:
                known[tail] = self.node()
                self.edge(known[tail], *tail[0], node_of(tail[1:]))
            return known[tail]

        for low, high in ranges:
            for first, *rest in spellings(low, high):
                self.edge(start, *first, node_of(tuple(rest)))
        return end
