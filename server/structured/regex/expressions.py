"""Regular expressions as trees, and how they are written into an automaton. Knows code points, but no syntax.

`^` and `$` are bytes that stand in no UTF-8 text: the automaton of a pattern reads the text between them, and is then
cut down to what lies between.

A look-ahead is an intersection, or a difference: of the automaton of all that follows, up to the end of the text, and
of the texts that begin with what is looked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.structured.automaton import Automaton, determinised, difference, embed, intersection, minimal
from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue, Unsupported
from server.structured.regex.code_points import ALL, Ranges

MAX_REPEAT = 4096
"""Repetitions that may be counted."""
MAX_LEVELS = 128
"""Groups, repetitions and look-aheads that are followed until no further look-ahead comes."""
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


@dataclass(frozen=True, slots=True)
class LookAhead:
    """Nothing, where the rest of the text begins with the item, or where it does not."""

    item: "Expression"
    is_negative: bool


Expression = Characters | Anchor | Joined | Either | Repeated | LookAhead
Spell = Callable[[Nfa, int, Ranges], int]
"""Writes one code point of these ranges behind a node."""
ANYTHING = Repeated(Characters(ALL), 0, None)
_NOTHING = Joined(())


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

    Anchors are refused, since what comes before and behind is not known, unless `is_between_anchors`. So are
    look-aheads.
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
            case LookAhead():
                raise Unsupported("a look-ahead at this place is not supported")

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
    """The automaton of whole texts that the expression matches, or of texts in which it is found.

    Raises NoValue, Unsupported or TooLarge.
    """
    free = (ANYTHING,) if is_search else ()
    return _Whole(budget, spell).between_anchors((_begun(free), expression, _ended(free)), level=0)


def _begun(free: tuple[Expression, ...]) -> Expression:
    """The start of the text and what is free behind it; or nothing, where the expression itself reads the start."""
    return Either((_NOTHING, Joined((Anchor(is_start=True), *free))))


def _ended(free: tuple[Expression, ...]) -> Expression:
    """The same of the end."""
    return Either((_NOTHING, Joined((*free, Anchor(is_start=False)))))


class _Whole:
    """Writes expressions up to the end of the text, so that what follows a look-ahead is known.

    `level`: how often an item was opened, or a look-ahead begun, to get there.
    """

    def __init__(self, budget: Budget, spell: Spell) -> None:
        self._budget = budget
        self._spell = spell

    def between_anchors(self, items: tuple[Expression, ...], level: int) -> Automaton:
        """The automaton of texts between whose anchors the items stand."""
        return _between_anchors(self._automaton(items, level), self._budget)

    def _automaton(self, items: tuple[Expression, ...], level: int) -> Automaton:
        nfa = Nfa(self._budget)
        start, end = nfa.node(), nfa.node()
        self._write(nfa, start, items, end, level)
        return determinised(nfa, start, end)

    def _write(self, nfa: Nfa, start: int, items: tuple[Expression, ...], end: int, level: int) -> None:
        """Writes the items, which are all up to the end of the text, from `start` to `end`."""
        self._budget.check_time()
        if level > MAX_LEVELS:
            raise Unsupported(f"more than {MAX_LEVELS} groups and look-aheads of one regex are not supported")
        count = next((index for index, item in enumerate(items) if _looks_ahead(item)), len(items))
        here = write(nfa, start, Joined(items[:count]), self._spell, is_between_anchors=True)
        if count == len(items):
            nfa.link(here, end)
            return
        rest = items[count + 1 :]
        for opened in self._opened(items[count]):
            if isinstance(opened, LookAhead):
                self._write_ahead(nfa, here, opened, rest, end, level + 1)
            else:
                self._write(nfa, _behind(nfa, here), (*opened, *rest), end, level + 1)

    def _opened(self, item: Expression) -> Iterator[LookAhead | tuple[Expression, ...]]:
        """The alternatives of an item in which there is a look-ahead, as items."""
        match item:
            case LookAhead():
                yield item
            case Joined(items):
                yield items
            case Either(items):
                yield from ((option,) for option in items)
            case Repeated(item, least, most):
                if most is None:
                    raise Unsupported("a look-ahead in a repetition without bound is not supported")
                if least == 0:
                    yield ()
                if most > 0:
                    yield item, Repeated(item, max(least - 1, 0), most - 1)

    def _write_ahead(
        self, nfa: Nfa, start: int, ahead: LookAhead, rest: tuple[Expression, ...], end: int, level: int
    ) -> None:
        """The rest where the look-ahead allows it; nothing where no text is left."""
        try:
            following = self._automaton(rest, level)
            looked_for = self._beginning(ahead.item, level)
            if looked_for and ahead.is_negative:
                following = difference(following, looked_for, self._budget)
            elif looked_for:
                following = intersection(following, looked_for, self._budget)
            if looked_for or ahead.is_negative:
                nfa.link(embed(nfa, start, following), end)
        except NoValue:
            return

    def _beginning(self, item: Expression, level: int) -> Automaton | None:
        """Texts that begin with the item; None if there are none.

        Any number of anchors stands around each, since some of them may be read before the look-ahead.
        """
        if any(part == Anchor(is_start=True) for part in _parts(item)):
            raise Unsupported("`^` in a look-ahead is not supported")
        try:
            texts = self.between_anchors((_begun(()), item, _ended((ANYTHING,))), level)
        except NoValue:
            return None
        nfa = Nfa(self._budget)
        start = nfa.node()
        nfa.edge(start, _START, _START, start)
        end = embed(nfa, start, texts)
        nfa.edge(end, _END, _END, end)
        return determinised(nfa, start, end)


def _looks_ahead(expression: Expression) -> bool:
    return any(isinstance(part, LookAhead) for part in _parts(expression))


def _parts(expression: Expression) -> Iterator[Expression]:
    """The expression and all that is in it."""
    waiting = [expression]
    while waiting:
        part = waiting.pop()
        yield part
        match part:
            case Joined(items) | Either(items):
                waiting += items
            case Repeated(item) | LookAhead(item):
                waiting.append(item)


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
