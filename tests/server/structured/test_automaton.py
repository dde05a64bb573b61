"""Automata accept what they should, are minimal, and are refused where they grow too large."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.structured.automaton import determinised, difference, embed, intersection
from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue, TooLarge
from server.structured.regex.code_points import MAX_CODE_POINT, complement, union
from server.structured.regex.expressions import automaton
from server.structured.regex.regex import parsed


def compiled(pattern, *, is_search=False, **bounds):
    return automaton(parsed(pattern), Budget(**bounds), is_search=is_search)


def num_classes_of_equal_states(found):
    """States that some text tells apart, by the table-filling algorithm: the slow twin of merging."""
    count = len(found.table)
    differ = found.accepts[:, None] != found.accepts[None]
    while True:
        finer = differ | differ[found.table[:, None], found.table[None]].any(axis=2)
        if (finer == differ).all():
            return len({tuple(row) for row in (~differ).tolist()}), count
        differ = finer


@pytest.mark.parametrize(
    ("pattern", "states"), [("(a|b)*abb", 4), ("a{3}", 4), ("(foo|boo|zoo)s?", 5), ("[ab]*a[ab]{4}", 32), ("x*x*", 1)]
)
def test_equal_states_are_merged(pattern, states):
    found = compiled(pattern)
    assert found.num_states == states
    assert num_classes_of_equal_states(found) == (states + 1, states + 1)


@given(st.lists(st.tuples(st.integers(0, MAX_CODE_POINT), st.integers(0, 300)), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_ranges_of_code_points_are_spelled_exactly(starts):
    ranges = union((low, min(low + length, MAX_CODE_POINT)) for low, length in starts)
    nfa = Nfa(Budget())
    start = nfa.node()
    end = nfa.character(start, ranges)
    try:
        found = determinised(nfa, start, end)
    except NoValue:
        assert all(low >= 0xD800 and high <= 0xDFFF for low, high in ranges)
        return
    for low, high in ranges:
        for code in {low - 1, low, high, high + 1} - {-1, MAX_CODE_POINT + 1}:
            is_in = any(first <= code <= last for first, last in ranges) and not 0xD800 <= code <= 0xDFFF
            assert found.matches(chr(code)) == is_in


def test_a_set_and_its_complement_are_everything():
    ranges = ((0, 9), (48, 57), (0x10FFFF, 0x10FFFF))
    assert complement(complement(ranges)) == ranges
    assert union([*ranges, *complement(ranges)]) == ((0, MAX_CODE_POINT),)


@pytest.mark.parametrize("text", ["", "ab", "abab", "aab", "ba", "b" * 9])
def test_intersection_and_difference(text):
    a, b = compiled("[ab]*"), compiled("(ab)*")
    assert intersection(a, b, Budget()).matches(text) == (a.matches(text) and b.matches(text))
    assert difference(a, b, Budget()).matches(text) == (a.matches(text) and not b.matches(text))


def test_what_is_empty_is_said():
    with pytest.raises(NoValue, match="no value fits"):
        intersection(compiled("a+"), compiled("b+"), Budget())
    with pytest.raises(NoValue):
        difference(compiled("a"), compiled("[ab]"), Budget())


def test_an_automaton_can_be_part_of_another():
    nfa = Nfa(Budget())
    start = nfa.literal(nfa.node(), b"<")
    end = nfa.literal(embed(nfa, start, compiled("(é|b){2}")), b">")
    found = determinised(nfa, 0, end)
    assert [found.matches(text) for text in ("<éb>", "<bb>", "<b>", "<bbb>")] == [True, True, False, False]


def test_words_share_their_beginnings():
    nfa = Nfa(Budget())
    end = nfa.words(nfa.node(), [b"yes", b"yes, but", b"ye", b""])
    found = determinised(nfa, 0, end)
    assert [found.matches(text) for text in ("yes", "ye", "yes, but", "", "y", "yes,")] == [True] * 4 + [False] * 2
    assert len(nfa.links) == 2 + len("yes, but")


@pytest.mark.parametrize(
    ("bounds", "cause"),
    [({"nodes": 50}, "more than 50 nodes"), ({"states": 40}, "more than 40 states"), ({"seconds": 0}, "more than 0 s")],
)
def test_budgets(bounds, cause):
    with pytest.raises(TooLarge, match=cause):
        compiled("(a|b)*a(a|b){9}", **bounds)


def test_states_that_count_are_bounded_after_merging():
    assert compiled("[^a]{50}").num_states == 50 * 8 + 1
    with pytest.raises(TooLarge, match="more than 400 states"):
        compiled("[^a]{50}", states=400)


def test_the_table_is_narrow():
    found = compiled("[a-z]+")
    assert found.table.shape[1] <= 5
    assert found.letters.dtype == np.uint8
