"""Sets of code points as ranges, and the bytes that spell them in UTF-8. Surrogates are in no text."""

from collections.abc import Iterable

Range = tuple[int, int]
"""The first and the last of neighbouring code points, or bytes."""
Ranges = tuple[Range, ...]

MAX_CODE_POINT = 0x10FFFF
ALL: Ranges = ((0, MAX_CODE_POINT),)
_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xD7FF, 0xFFFF)
"""The last code points of one, two and three bytes, and the last one before the surrogates."""
_SURROGATES = (0xD800, 0xDFFF)


def union(ranges: Iterable[Range]) -> Ranges:
    """The same code points in ascending ranges that do not touch."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Iterable[Range]) -> Ranges:
    """All other code points."""
    gaps, start = [], 0
    for low, high in union(ranges):
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODE_POINT:
        gaps.append((start, MAX_CODE_POINT))
    return tuple(gaps)


def intersection(a: Iterable[Range], b: Iterable[Range]) -> Ranges:
    """The code points that are in both."""
    others = union(b)
    return tuple(
        (max(low, first), min(high, last))
        for low, high in union(a)
        for first, last in others
        if max(low, first) <= min(high, last)
    )


def spellings(low: int, high: int) -> list[Ranges]:
    """Sequences of byte ranges that spell exactly the code points from `low` to `high`."""
    if low > high:
        return []
    if _SURROGATES[0] <= low <= _SURROGATES[1]:
        return spellings(_SURROGATES[1] + 1, high)
    for bound in _LAST_OF_LENGTH:
        if low <= bound < high:
            return spellings(low, bound) + spellings(bound + 1, high)
    return _between(chr(low).encode(), chr(high).encode())


def _between(low: bytes, high: bytes) -> list[Ranges]:
    """Sequences for all spellings from `low` to `high`, which are equally long."""
    first, last, behind = low[0], high[0], len(low) - 1
    if not behind:
        return [((first, last),)]
    if first == last:
        return [((first, last), *rest) for rest in _between(low[1:], high[1:])]
    least, most = b"\x80" * behind, b"\xbf" * behind
    found: list[Ranges] = []
    tail: list[Ranges] = []
    if low[1:] != least:
        found += [((first, first), *rest) for rest in _between(low[1:], most)]
        first += 1
    if high[1:] != most:
        tail = [((last, last), *rest) for rest in _between(least, high[1:])]
        last -= 1
    if first <= last:
        found.append(((first, last), *[(0x80, 0xBF)] * behind))
    return found + tail
