"""Integers and decimals between bounds, as they are written in JSON. Exact: bounds are decimals, never floats."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from server.structured.automaton import Automaton, determinised, intersection
from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue, Unsupported
from server.structured.regex import regex
from server.structured.regex.code_points import Ranges
from server.structured.regex.expressions import Characters, Either, Expression, Joined, Repeated, text, write
from server.structured.schema.keywords import inside

MAX_DIGITS = 400
"""Digits of a bound, before or behind the point."""
MAX_MULTIPLE = 1000
ANY_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
PLAIN_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"
ANY_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_NOTHING = Characters(())
_EMPTY = Joined(())


@dataclass(frozen=True, slots=True, order=True)
class Bound:
    value: Decimal
    is_exclusive: bool = False

    @property
    def is_inclusive(self) -> bool:
        return not self.is_exclusive

    def mirrored(self) -> "Bound":
        return Bound(self.value.copy_negate(), self.is_exclusive)  # `-` would round to 28 digits


def number(schema: dict[str, Any], budget: Budget, place: str) -> Automaton:
    """The numbers that the schema allows. Multiples are integers."""
    if "multipleOf" in schema:
        return integer(schema, budget, place)
    low, high = _bounds(schema, place)
    if low is None and high is None:
        return _automaton(regex.parsed(ANY_NUMBER), budget)
    try:
        between = _automaton(_decimals(low, high), budget)
        return intersection(between, _automaton(regex.parsed(PLAIN_NUMBER), budget), budget)
    except NoValue:
        raise NoValue("no number lies between its bounds", place) from None


def integer(schema: dict[str, Any], budget: Budget, place: str) -> Automaton:
    """The integers that the schema allows."""
    least, most = _bounds(schema, place)
    low = None if least is None else _ceiling(least)
    high = None if most is None else -_ceiling(most.mirrored())
    if low is not None and high is not None and low > high:
        raise NoValue("no integer lies between its bounds", place)
    divisor = schema.get("multipleOf", 1)
    if divisor != 1:
        return _multiples(divisor, low, high, budget, place)
    if low is None and high is None:
        return _automaton(regex.parsed(ANY_INTEGER), budget)
    return _automaton(_integers(low, high), budget)


def _automaton(expression: Expression, budget: Budget) -> Automaton:
    nfa = Nfa(budget)
    start = nfa.node()
    return determinised(nfa, start, write(nfa, start, expression))


def _bounds(schema: dict[str, Any], place: str) -> tuple[Bound | None, Bound | None]:
    """The lower and the upper bound."""
    found: dict[str, list[Bound]] = {"min": [], "max": []}
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if keyword in schema:
            value = Decimal(str(schema[keyword]))
            whole, _, fraction = format(value, "f").partition(".")
            if max(len(whole), len(fraction)) > MAX_DIGITS:
                raise Unsupported(f"a bound of more than {MAX_DIGITS} digits is not supported", inside(place, keyword))
            found["min" if "inimum" in keyword else "max"].append(Bound(value, keyword.startswith("exclusive")))
    low = max(found["min"], default=None)
    high = min(found["max"], key=lambda bound: (bound.value, bound.is_inclusive), default=None)
    return low, high


def _ceiling(bound: Bound) -> int:
    """The least integer that is not below the bound."""
    whole = int(bound.value)
    if whole < bound.value or (whole == bound.value and bound.is_exclusive):
        return whole + 1
    return whole


def _multiples(divisor: float, low: int | None, high: int | None, budget: Budget, place: str) -> Automaton:
    """Integers that `divisor` divides, told by their remainder, digit by digit."""
    if divisor != int(divisor) or divisor > MAX_MULTIPLE:
        raise Unsupported(f"`multipleOf` is supported for integers up to {MAX_MULTIPLE}", inside(place, "multipleOf"))
    step = int(divisor)
    nfa = Nfa(budget)
    start = nfa.node()
    multiples = determinised(nfa, start, _write_multiples(nfa, start, step))
    try:
        return intersection(multiples, _automaton(_integers(low, high), budget), budget)
    except NoValue:
        raise NoValue(f"no multiple of {step} lies between its bounds", inside(place, "multipleOf")) from None


def _write_multiples(nfa: Nfa, start: int, step: int) -> int:
    """A node for each remainder of the digits so far."""
    first, end = nfa.node(), nfa.node()
    remainders = [nfa.node() for _ in range(step)]
    nfa.link(start, first)
    nfa.link(nfa.literal(start, b"-"), first)
    nfa.link(nfa.literal(start, b"0"), end)
    for digit in range(10):
        byte = ord("0") + digit
        if digit:
            nfa.edge(first, byte, byte, remainders[digit % step])
        for remainder, node in enumerate(remainders):
            nfa.edge(node, byte, byte, remainders[(remainder * 10 + digit) % step])
    nfa.link(remainders[0], end)
    return end


def _integers(low: int | None, high: int | None) -> Expression:
    signs: list[Expression] = []
    if high is None or high >= 0:
        signs.append(_naturals(0 if low is None else max(low, 0), high))
    if low is None or low < 0:
        least = 1 if high is None else max(-high, 1)
        signs.append(Joined((text("-"), _naturals(least, None if low is None else -low))))
    return Either(tuple(signs))


def _naturals(low: int, high: int | None) -> Expression:
    """The integers from `low`, 0 or more, to `high`, without leading zeros."""
    shortest = len(str(low))
    longest = None if high is None else len(str(high))
    if longest == shortest:
        return _between(str(low), str(high))
    middle = Joined((_digit(1, 9), Repeated(_digit(0, 9), shortest, None if longest is None else longest - 2)))
    ranges = [_between(str(low), "9" * shortest)]
    if longest is None or longest > shortest + 1:
        ranges.append(middle)
    if longest is not None:
        ranges.append(_between("1" + "0" * (longest - 1), str(high)))
    return Either(tuple(ranges))


def _between(low: str, high: str) -> Expression:
    """The digits from `low` to `high`, which are equally many."""
    if not low.strip("0") and not high.strip("9"):  # any digits; also where none are left
        return Repeated(_digit(0, 9), len(low), len(low))
    first, last, behind = int(low[0]), int(high[0]), len(low) - 1
    if first == last:
        return Joined((_digit(first, first), _between(low[1:], high[1:])))
    return Either(
        (
            Joined((_digit(first, first), _between(low[1:], "9" * behind))),
            Joined((_digit(first + 1, last - 1), Repeated(_digit(0, 9), behind, behind))),
            Joined((_digit(last, last), _between("0" * behind, high[1:]))),
        )
    )


def _digit(low: int, high: int) -> Characters:
    ranges: Ranges = ((ord("0") + low, ord("0") + high),) if low <= high else ()
    return Characters(ranges)


def _decimals(low: Bound | None, high: Bound | None) -> Expression:
    """The decimals between the bounds, and some with a point but no digit behind it."""
    zero = Bound(Decimal(0))
    signs: list[Expression] = []
    if high is None or high.value >= 0:
        signs.append(_positive(max(low or zero, zero), high))
    if low is None or low.value < 0:
        least = high.mirrored() if high and high.value < 0 else Bound(Decimal(0), is_exclusive=True)
        signs.append(Joined((text("-"), _positive(least, None if low is None else low.mirrored()))))
    return Either(tuple(signs))


def _positive(low: Bound, high: Bound | None) -> Expression:
    """The decimals from `low`, 0 or more, to `high`."""
    first, least = _parts(low)
    any_fraction = Either((_EMPTY, Joined((text("."), Repeated(_digit(0, 9), 0, None)))))
    if high is None:
        starts_low = Joined(
            (text(str(first)), _fraction(_tails(least, low.is_exclusive), low.is_inclusive and not least))
        )
        return Either((starts_low, Joined((_naturals(first + 1, None), any_fraction))))
    last, most = _parts(high)
    if first == last:
        tails = _tails_between(least, low.is_exclusive, most, high.is_exclusive)
        is_whole = not least and low.is_inclusive and (bool(most) or high.is_inclusive)
        return Joined((text(str(first)), _fraction(tails, is_whole)))
    if first > last:
        return _NOTHING
    return Either(
        (
            Joined((text(str(first)), _fraction(_tails(least, low.is_exclusive), low.is_inclusive and not least))),
            Joined((_naturals(first + 1, last - 1), any_fraction)) if first + 1 <= last - 1 else _NOTHING,
            Joined(
                (text(str(last)), _fraction(_tails_up_to(most, high.is_exclusive), bool(most) or high.is_inclusive))
            ),
        )
    )


def _parts(bound: Bound) -> tuple[int, str]:
    """The whole number, and the digits behind the point without zeros at their end."""
    whole, _, fraction = format(bound.value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _fraction(tails: Expression, is_whole: bool) -> Expression:
    """A point and one of the tails; `is_whole`: or nothing."""
    behind = Joined((text("."), tails))
    return Either((_EMPTY, behind)) if is_whole else behind


def _tails(least: str, is_exclusive: bool) -> Expression:
    """Digits behind the point of a fraction that is `least` or more."""
    anything = Repeated(_digit(0, 9), 0, None)
    if not least:
        return Joined((anything, _digit(1, 9), anything)) if is_exclusive else anything
    first = int(least[0])
    return Either(
        (
            Joined((_digit(first, first), _tails(least[1:], is_exclusive))),
            Joined((_digit(first + 1, 9), anything)),
        )
    )


def _tails_up_to(most: str, is_exclusive: bool) -> Expression:
    """Digits behind the point of a fraction that is `most` or less."""
    if not most:
        return _NOTHING if is_exclusive else Repeated(_digit(0, 0), 0, None)
    first = int(most[0])
    return Either(
        (
            _EMPTY,
            Joined((_digit(0, first - 1), Repeated(_digit(0, 9), 0, None))),
            Joined((_digit(first, first), _tails_up_to(most[1:], is_exclusive))),
        )
    )


def _tails_between(least: str, is_above: bool, most: str, is_below: bool) -> Expression:
    """Digits behind the point between `least` and `most`; `is_above`, `is_below`: exclusively."""
    if least == most:
        is_nothing = is_above or is_below
        return _NOTHING if is_nothing else Joined((text(least), Repeated(_digit(0, 0), 0, None)))
    first, last = int(least[:1] or "0"), int(most[:1] or "0")
    if first > last:
        return _NOTHING
    empty = _EMPTY if not least and not is_above else _NOTHING
    if first == last:
        rest = _tails_between(least[1:], is_above, most[1:], is_below)
        return Either((empty, Joined((_digit(first, first), rest))))
    return Either(
        (
            empty,
            Joined((_digit(first, first), _tails(least[1:], is_above))),
            Joined((_digit(first + 1, last - 1), Repeated(_digit(0, 9), 0, None))),
            Joined((_digit(last, last), _tails_up_to(most[1:], is_below))),
        )
    )
