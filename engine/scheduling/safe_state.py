"""Whether pages can be handed out one by one without anybody getting stuck.

Requests take pages as their blocks open and give all of them back when they end; nobody is made to give any up. So a
state is allowed only if it is safe in the sense of Dijkstra's banker's algorithm (EWD 623): all could still end, one
after the other, each with what is free and what those before it have given back. Knows numbers of pages alone.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Claim(NamedTuple):
    """Of one request, in pages."""

    held: int
    missing: int
    """What it may still take."""


def most_alike(pages: int, opening: int, canvas: int) -> int:
    """How many requests alike a pool runs at once: each holds `opening` pages and may come to hold `canvas`.

    The state is safe while one of them finds the rest of its canvas free.
    """
    return max(pages - (canvas - opening), 0) // opening if pages >= canvas else 0


def is_safe(free: int, claims: Iterable[Claim]) -> bool:
    """Whether all can end, with so many pages free. Whoever misses least goes first: no other order gets further."""
    for claim in sorted(claims, key=lambda claim: claim.missing):
        if claim.missing > free:
            return False
        free += claim.held
    return True
