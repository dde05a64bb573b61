"""Regular expressions as trees, and how they are written into an automaton. Knows code points, but no syntax.

`^` and `$` are bytes that stand in no UTF-8 text: the automaton of a pattern reads the text between them, and is then
cut down to what lies between.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.structured.automaton import Automaton, determinised, minimal
from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue, Unsupported
from server.structured.regex.code_points import ALL, Ranges

MAX_REPEAT = 4096
"""Repetitions that may be counted."""
_START, _END = 0xFE, 0xFF


@dataclass(frozen=True, slots=True)
class Characters:
    """One code point of these ranges; nothing fits if there are none."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start of the text, or its end."""

    is_start: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """One behind the other."""

    items: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several."""

    items: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """`least` times or more, up to `most`; without bound if that is None."""

    item: "Expression"
    least: int
    most: int | None


Expression = Characters | Anchor | Joined | Either | Repeated
Spell = Callable[[Nfa, int, Ranges], int]
"""Writes one code point of these ranges behind a node."""
ANYTHING = Repeated(Characters(ALL), 0, None)


def text(value: str) -> Joined:
    """Exactly this text."""
    return Joined(tuple(Characters(((ord(letter), ord(letter)),)) for letter in value))


def utf8(nfa: Nfa, start: int, ranges: Ranges) -> int:
    """A code point as it is."""
    return nfa.character(start, ranges)


def write(
    nfa: Nfa, start: int, expression: Expression, spell: Spell = utf8, *, is_between_anchors: bool = False
) -> int:
    """Writes the expression behind `start`.

    Anchors are refused, since what comes before and behind is not known, unless `is_between_anchors`.
    """

    def written(start: int, expression: Expression) -> int:
        match expression:
            case Characters(ranges):
                return spell(nfa, start, ranges)
            case Joined(items):
                for item in items:
                    start = written(start, item)
                return start
            case Either(items):
                end = nfa.node()
                for item in items:
                    nfa.link(written(_behind(nfa, start), item), end)
                return end
            case Repeated(item, least, most):
                return repeated(start, item, least, most)
            case Anchor(is_start):
                if not is_between_anchors:
                    raise Unsupported(f"`{'^' if is_start else '$'}` at this place is not supported")
                return _once_or_more(nfa, start, _START if is_start else _END)

    def repeated(start: int, item: Expression, least: int, most: int | None) -> int:
        for _ in range(least):
            start = written(start, item)
        end = nfa.node()
        if most is None:
            loop = _behind(nfa, start)
            nfa.link(written(loop, item), loop)
            nfa.link(loop, end)
            return end
        nfa.link(start, end)
        for _ in range(most - least):
            start = written(_behind(nfa, start), item)
            nfa.link(start, end)
        return end

    return written(start, expression)


def automaton(expression: Expression, budget: Budget, *, is_search: bool, spell: Spell = utf8) -> Automaton:
    """The automaton of whole texts that the expression matches, or of texts in which it is found."""
    nfa = Nfa(budget)
    start = nfa.node()
    begun = _once_or_more(nfa, start, _START)
    if is_search:
        begun = write(nfa, begun, ANYTHING, spell)
    nfa.link(start, begun)  # where the expression itself reads the start
    matched = write(nfa, begun, expression, spell, is_between_anchors=True)
    end = nfa.node()
    nfa.link(matched, end)  # where it reads the end
    rest = write(nfa, matched, ANYTHING, spell) if is_search else matched
    nfa.link(_once_or_more(nfa, rest, _END), end)
    return _between_anchors(determinised(nfa, start, end), budget)


def _behind(nfa: Nfa, start: int) -> int:
    """A node that what is written there can return to without returning to `start`."""
    node = nfa.node()
    nfa.link(start, node)
    return node


def _once_or_more(nfa: Nfa, start: int, byte: int) -> int:
    """An anchor's byte. It may come again, so that several anchors hold at one place."""
    end = nfa.literal(start, bytes([byte]))
    nfa.edge(end, byte, byte, end)
    return end


def _between_anchors(whole: Automaton, budget: Budget) -> Automaton:
    """What `whole` accepts between anchors, each as often as it changes anything."""
    first, last = whole.letters[[_START, _END]]
    start = int(_steady(whole.table[:, first])[0])
    order = np.concatenate([[start], np.delete(np.arange(len(whole.table)), start)])
    if start == whole.dead:
        raise NoValue("no text at all")
    renamed = np.argsort(order).astype(np.int32)
    table = renamed[whole.table[order]]
    table[:, [first, last]] = whole.dead
    accepts = whole.accepts[_steady(whole.table[:, last])[order]]
    return minimal(table, whole.letters, accepts, budget)


def _steady(following: NDArray[np.int32]) -> NDArray[np.int32]:
    """[states] where each state is led to by so many steps that a further one leads nowhere else."""
    behind = following
    while (behind != following[behind]).any():
        behind = following[behind]
    return behind
