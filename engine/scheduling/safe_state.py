"""Whether pages can be handed out as blocks open without a deadlock.

Requests take pages as their blocks open and give all of them back when they end; no request is preempted. So a state is
allowed only if it is safe in the sense of Dijkstra's banker's algorithm (EWD 623): all requests can still end, one
after the other, each with the free pages and those that the requests before it gave back. Knows only numbers of pages.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Claim(NamedTuple):
    """The claim of one request, in pages."""

    held: int
    missing: int
    """Pages that it may still take."""


def most_alike(pages: int, opening: int, canvas: int) -> int:
    """How many equal requests a pool runs at once, if each holds `opening` pages and may grow to `canvas` pages.

    The state is safe while one of them finds the rest of its canvas free.
    """
    return max(pages - (canvas - opening), 0) // opening if pages >= canvas else 0


def most_alike_growing(pages: int, opening: int, canvas: int) -> int:
    """The same for requests that may be preempted: admission leaves a page for each one that may still grow."""
    if opening >= canvas:
        return pages // canvas
    return (pages + 1) // (opening + 1) if pages >= canvas else 0


def is_safe(free: int, claims: Iterable[Claim]) -> bool:
    """Whether all requests can end with `free` pages free. Fewest missing pages first: no other order gets further."""
    for claim in sorted(claims, key=lambda claim: claim.missing):
        if claim.missing > free:
            return False
        free += claim.held
    return True
